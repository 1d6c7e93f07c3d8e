"""CUDA kernels on the CPU: TVM's own CUDA runtime on a driver that runs the emitted CUDA C++ (see emulator/).

    kernel = emulated_cuda.compile(prim_func)
    kernel(a, b, c)                     # numpy arrays; what the kernel wrote stands in them afterwards
    with emulated_cuda.thread_order("backward"): kernel(a, b, c)

Device memory, shared memory and local variables begin as NaN. A kernel that lets threads of a block part ways at a
barrier, accesses memory outside of its buffers, or lets two threads access a byte, one of them writing, with no barrier
between, fails with a RuntimeError that names the kernel, block, thread and, for an access, the line of CUDA source.
"""

import contextlib
import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tvm
import tvm_ffi
from gpu import cuda_to_cpp, emulator_build
from tvm.target import Target

_ORDERS = {"forward": 0, "backward": 1}
_HOOK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_void_p),
)
_CALLBACK = "tvm_callback_cuda_compile"
_KERNEL_FLAGS = ["-O1", "-g1", "-w", "-march=native", "-fno-strict-aliasing", "-ftrivial-auto-var-init=pattern"]
_CHECK_FLAGS = ["-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"]


def target(arch: str = "sm_80") -> Target:
    """The CUDA target that :func:`compile` uses."""
    return Target({"kind": "cuda", "arch": arch}, host={"kind": "llvm"})


def driver_paths() -> tuple[Path, Path]:
    """The emulated libcuda.so.1 and libcudart.so.13, to be loaded in this order."""
    sources, flags = emulator_build.SOURCES, ["-O2", "-g1", "-Wall"]
    headers = [sources / "emulator.h", sources / "runtime.h"]
    driver_sources = [sources / name for name in ("block.cc", "memory.cc", "checker.cc", "driver.cc")]
    driver_path = emulator_build.shared_object(
        "libcuda.so.1", driver_sources, headers, flags, ["-Wl,-soname,libcuda.so.1", "-ldl"]
    )
    cudart_path = emulator_build.shared_object(
        "libcudart.so.13",
        [sources / "cudart.cc"],
        headers,
        flags,
        ["-Wl,-soname,libcudart.so.13", f"-Wl,--version-script={sources / 'cudart.map'}", str(driver_path)],
    )
    return driver_path, cudart_path


@functools.cache
def _driver() -> ctypes.CDLL:
    """Loads the emulated driver, and TVM's CUDA runtime on it."""
    # Loaded first and by these names, they are what TVM's CUDA runtime is linked with.
    driver, _ = (ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL) for path in driver_paths())
    ctypes.CDLL(str(Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"))
    if tvm.cuda(0).device_name != "CUDA emulated on the CPU":
        raise RuntimeError("TVM found another CUDA driver: the emulator needs a process without one")
    return driver


def device() -> tvm.runtime.Device:
    """The emulated device."""
    _driver()
    return tvm.cuda(0)


@contextlib.contextmanager
def thread_order(order: str | int):
    """Threads of a block, and blocks, take turns "forward" (as numbered), "backward", or shuffled by a seed."""
    number = _ORDERS.get(order, order)
    _driver().emulator_set_thread_order(number)
    try:
        yield
    finally:
        _driver().emulator_set_thread_order(0)


@contextlib.contextmanager
def launching(run: Callable[[str, tuple, tuple, "ctypes._Pointer"], None]):
    """Launches are handed to ``run(kernel name, grid, block, void** arguments)``; code for the emulator does not run.

    Pointers among the arguments are addresses in this process; :func:`bytes_from` tells how much lies there.
    """
    errors = []

    def hook(kernel, grid, block, arguments):
        try:
            run(kernel.decode(), tuple(grid[:3]), tuple(block[:3]), arguments)
        except Exception as error:  # it must not be lost in C++
            errors.append(error)
            return 1
        return 0

    callback = _HOOK(hook)
    _driver().emulator_set_launch_hook(callback)
    try:
        yield
    except RuntimeError:
        if errors:
            raise errors[0] from None
        raise
    finally:
        _driver().emulator_set_launch_hook(_HOOK())


def bytes_from(address: int) -> int:
    """Bytes of device memory from an address to the end of its buffer."""
    function = _driver().emulator_bytes_from
    function.restype = ctypes.c_size_t
    return function(ctypes.c_void_p(address))


def device_code(source: str, checked: bool = False) -> bytes:
    """What the emulated driver loads as a module, for CUDA ``source`` that TVM emitted."""
    include = emulator_build.SOURCES / "include"
    headers = [emulator_build.SOURCES / "emulator.h", *sorted(include.glob("*.h"))]
    flags = [*_KERNEL_FLAGS, *(_CHECK_FLAGS if checked else []), "-include", str(include / "device.h"), f"-I{include}"]
    path = emulator_build.source_file(cuda_to_cpp.translate(source))
    return emulator_build.shared_object("module.so", [path], headers, flags, []).read_bytes()


@contextlib.contextmanager
def compiling(checked: bool = False, code: Callable[[str, bool], bytes] | None = None):
    """CUDA modules that TVM makes meanwhile hold code for the emulator; ``checked`` code reports races and overruns."""
    device()
    before = tvm_ffi.get_global_func(_CALLBACK)
    tvm_ffi.register_global_func(_CALLBACK, lambda source: (code or device_code)(source, checked), override=True)
    try:
        yield
    finally:
        tvm_ffi.register_global_func(_CALLBACK, before, override=True)


def compile(func: tvm.tirx.PrimFunc, checked: bool = True, arch: str = "sm_80", code=None):
    """``func``, which must have thread bindings, as a function of numpy arrays, device tensors and numbers.

    Arrays are copied to the device and back; tensors are passed on. ``code`` is like :func:`device_code`.
    """
    cuda = target(arch)
    module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    with cuda, compiling(checked, code):
        compiled = tvm.compile(module, target=cuda)["main"]

    def call(*arguments) -> None:
        arrays = [value for value in arguments if isinstance(value, np.ndarray)]
        tensors = [tvm.runtime.tensor(value, device()) for value in arrays]
        uploaded = iter(tensors)
        try:
            compiled(*(next(uploaded) if isinstance(value, np.ndarray) else value for value in arguments))
        except tvm.error.InternalError as error:
            # TVM appends the whole CUDA source.
            raise RuntimeError(str(error).partition("\n")[0]) from None
        for array, tensor in zip(arrays, tensors):
            array[...] = tensor.numpy()

    return call
