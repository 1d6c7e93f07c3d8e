"""Kernels as WebGPU runs them: TVM's WGSL, validated by naga, on a Vulkan device (lavapipe: Mesa's, on the CPU).

TVM's Python wheel has no runtime for WebGPU. So TVM's host code launches the CUDA form of the same function on the
emulated device, and each launch runs the WGSL kernel of that name instead, its arguments matched by name.
"""

import ctypes
import functools
import re
import struct
from collections.abc import Callable

import numpy as np
import tvm
from gpu import cuda_to_cpp, emulated_cuda

from passes.target import parse_target

_SHADER = re.compile(r"// Function: (\w+)\n//-+\n")
_BUFFER = re.compile(r"@binding\((\d+)\) var<storage, (\w+)> (\w+)\s*:")
_C_TYPES = {"int": ctypes.c_int32, "uint": ctypes.c_uint32, "int64_t": ctypes.c_int64, "float": ctypes.c_float}
_C_TYPES["long long"] = ctypes.c_int64
_FORMATS = {"i32": "<i", "u32": "<I", "f32": "<f"}
_TARGET = parse_target("webgpu")


@functools.cache
def adapter():
    """A Vulkan adapter that has float16; None without wgpu-py or a driver (Debian: mesa-vulkan-drivers)."""
    try:
        import wgpu
    except ImportError:
        return None
    try:
        found = wgpu.gpu.request_adapter_sync(power_preference="high-performance")
    except RuntimeError:
        return None
    return found if found is not None and "shader-f16" in found.features else None


@functools.cache
def _device():
    # All other limits are the defaults, which every device has: 8 storage buffers a stage, 256 threads a workgroup.
    return adapter().request_device_sync(
        required_features=["shader-f16"],
        required_limits={"max-compute-workgroup-storage-size": int(_TARGET.attrs["max_shared_memory_per_block"])},
    )


class InvalidShader(Exception):
    """naga, the compiler of WGSL in wgpu, refuses a shader."""


def validate(source: str):
    """The shader module of WGSL ``source``. InvalidShader says what is wrong with it."""
    import wgpu

    try:
        return _device().create_shader_module(code=source)
    except wgpu.GPUValidationError as error:
        raise InvalidShader(str(error)) from None


def compile(func: tvm.tirx.PrimFunc) -> Callable[..., None]:
    """``func``, made for WebGPU's features, as a function of numpy arrays, which it changes in place, and numbers."""
    sources = shaders(func)
    cuda = emulated_cuda.target()
    with cuda, emulated_cuda.compiling():
        module = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=cuda)
    source = module.mod.imports[0].inspect_source("cuda")
    kernels = {name: _Kernel(name, sources[name], found) for name, found in cuda_to_cpp.parameters(source).items()}

    def launch(kernel: str, grid: tuple[int, ...], _block: tuple[int, ...], values) -> None:
        kernels[kernel].launch(grid, values)

    def call(*arguments) -> None:
        tensors = [
            tvm.runtime.tensor(value, emulated_cuda.device()) if isinstance(value, np.ndarray) else value
            for value in arguments
        ]
        with emulated_cuda.launching(launch):
            module["main"](*tensors)
        for value, tensor in zip(arguments, tensors, strict=True):
            if isinstance(value, np.ndarray):
                value[...] = tensor.numpy()

    return call


def shaders(func: tvm.tirx.PrimFunc) -> dict[str, str]:
    """WGSL by kernel name."""
    with _TARGET:
        module = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=_TARGET)
    _, *named = _SHADER.split(module.mod.imports[0].inspect_source())
    texts = dict.fromkeys(named[::2], "")
    for name, text in zip(named[::2], named[1::2], strict=True):
        texts[name] += text
    return texts


class _Kernel:
    """A shader and the parameters of its CUDA twin."""

    def __init__(self, name: str, shader: str, parameters: list[tuple[str, str]]) -> None:
        self.parameters, self.buffers = parameters, _BUFFER.findall(shader)
        self.uniform = re.search(r"@binding\((\d+)\) var<uniform>", shader)
        fields = re.search(r"struct PODArgs \{(.*?)\}", shader, re.DOTALL)
        self.fields = re.findall(r"(\w+)\s*:\s*(\w+)", fields[1]) if fields else []
        layout = [
            _layout(int(binding), "read-only-storage" if access == "read" else "storage")
            for binding, access, _ in self.buffers
        ]
        if self.uniform:
            layout.append(_layout(int(self.uniform[1]), "uniform"))
        self.layout = _device().create_bind_group_layout(entries=layout)
        self.pipeline = _device().create_compute_pipeline(
            layout=_device().create_pipeline_layout(bind_group_layouts=[self.layout]),
            compute={"module": validate(shader), "entry_point": name},
        )

    def launch(self, grid: tuple[int, ...], values) -> None:
        """``values``: void** to the arguments of the CUDA kernel. What the shader writes goes back there."""
        import wgpu

        device, usage = _device(), wgpu.BufferUsage
        arguments = {}
        for (dtype, name), place in zip(self.parameters, values[: len(self.parameters)], strict=True):
            dtype = ctypes.c_void_p if dtype.endswith("*") else _C_TYPES[dtype]
            arguments[name] = dtype.from_address(place).value
        entries, changed = [], []
        for binding, access, name in self.buffers:
            num_bytes = emulated_cuda.bytes_from(arguments[name])
            # Empty arrays, too, are words to WebGPU.
            data = ctypes.string_at(arguments[name], num_bytes) + bytes(-num_bytes % 4 if num_bytes else 4)
            buffer = device.create_buffer_with_data(data=data, usage=usage.STORAGE | usage.COPY_SRC)
            if access != "read":
                changed.append((arguments[name], num_bytes, buffer))
            entries.append(_entry(int(binding), buffer))
        if self.uniform:
            arguments["packGridDimX"] = grid[0] - 1
            data = b"".join(struct.pack(_FORMATS[dtype], arguments[name]) for name, dtype in self.fields)
            buffer = device.create_buffer_with_data(data=data + bytes(-len(data) % 16), usage=usage.UNIFORM)
            entries.append(_entry(int(self.uniform[1]), buffer))
        commands = device.create_command_encoder()
        compute = commands.begin_compute_pass()
        compute.set_pipeline(self.pipeline)
        compute.set_bind_group(0, device.create_bind_group(layout=self.layout, entries=entries))
        compute.dispatch_workgroups(*grid)
        compute.end()
        device.queue.submit([commands.finish()])
        for address, num_bytes, buffer in changed:
            ctypes.memmove(address, bytes(device.queue.read_buffer(buffer)), num_bytes)


def _layout(binding: int, kind: str) -> dict:
    import wgpu

    return {"binding": binding, "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": kind}}


def _entry(binding: int, buffer) -> dict:
    return {"binding": binding, "resource": {"buffer": buffer, "offset": 0, "size": buffer.size}}
