"""Metal kernels on the CPU: TVM's Metal source, compiled by g++ against a small Metal library (tests/gpu/metal).

That is not Apple's compiler. TVM's Python wheel has no runtime for Metal either: TVM's host code launches the CUDA form
of the same function on the emulated device, whose module holds the translated Metal kernels instead of CUDA ones. So
threads, barriers, thread orders, poisoned memory and the checks of each access are the emulator's. As Metal's compiler
does unless told otherwise, g++ may take float arithmetic for that of real numbers (-ffast-math).
"""

import tvm
import tvm_ffi
from gpu import cuda_to_cpp, emulated_cuda, emulator_build, metal_to_cpp

from passes.target import parse_target

TARGET = parse_target("metal")
_LIBRARY = emulator_build.SOURCES.parent / "metal"
_FLAGS = ["-O1", "-g1", "-w", "-march=native", "-ffast-math", "-fno-strict-aliasing"]
_FLAGS += ["-ftrivial-auto-var-init=pattern", f"-I{_LIBRARY}"]
_CHECK_FLAGS = ["-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"]


def source(func: tvm.tirx.PrimFunc) -> str:
    """The Metal source of all kernels of ``func``."""
    with TARGET:
        built = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=TARGET)
    (module,) = built.mod.imports
    return module.inspect_source()


def compile(func: tvm.tirx.PrimFunc, checked: bool = True):
    """``func``, made for the features of Metal, as :func:`emulated_cuda.compile` would return its CUDA form."""
    metal_source = source(func)

    def device_code(cuda_source: str, checked: bool) -> bytes:
        text = metal_to_cpp.translate(metal_source, cuda_to_cpp.parameters(cuda_source))
        headers = [*sorted(_LIBRARY.iterdir()), emulator_build.SOURCES / "emulator.h"]
        headers += [emulator_build.SOURCES / "include" / name for name in ("float16.h", "cuda_fp16.h")]
        flags = [*_FLAGS, *(_CHECK_FLAGS if checked else [])]
        path = emulator_build.source_file(text)
        return emulator_build.shared_object("module.so", [path], headers, flags, []).read_bytes()

    launched = func.with_body(tvm_ffi.structural_map(func.body, (tvm.ir.Call, _cuda_form)))
    return emulated_cuda.compile(launched, checked, code=device_code)


def _cuda_form(call: tvm.ir.Call) -> tvm.ir.Expr:
    """Nothing in place of an operation on simdgroup matrices: of CUDA's form, only how to launch it is wanted."""
    is_simdgroup = isinstance(call.op, tvm.ir.Op) and "simdgroup" in call.op.name
    return tvm.tirx.const(0, "int32") if is_simdgroup else call
