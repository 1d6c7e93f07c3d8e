"""Kernels as WebGPU runs them: TVM's WGSL, validated by naga, on a Vulkan device (lavapipe: Mesa's, on the CPU).

TVM's Python wheel has no runtime for WebGPU. So TVM's host code launches the CUDA form of the same function on the
emulated device, and each launch runs the WGSL kernel of that name instead, its arguments matched by name.
"""

import ctypes
import functools
import re
import struct

import numpy as np
import tvm
from gpu import emulated_cuda

from passes.target import parse_target

_SHADER = re.compile(r"// Function: (\w+)\n//-+\n")
_SIGNATURE = re.compile(r'extern "C" __global__ void (?:__\w+__\([^)]*\) )?(\w+)\(([^)]*)\) \{')
_BUFFER = re.compile(r"@binding\((\d+)\) var<storage, (\w+)> (\w+)\s*:")
_C_TYPES = {"int": ctypes.c_int32, "uint": ctypes.c_uint32, "int64_t": ctypes.c_int64, "float": ctypes.c_float}
_C_TYPES["long long"] = ctypes.c_int64
_FORMATS = {"i32": "<i", "u32": "<I", "f32": "<f"}


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
    limits = ("max-storage-buffers-per-shader-stage", "max-compute-workgroup-storage-size")
    return adapter().request_device_sync(
        required_features=["shader-f16"], required_limits={name: adapter().limits[name] for name in limits}
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


def run(func: tvm.tirx.PrimFunc, *arguments) -> None:
    """Call ``func``, made for the features of WebGPU, on numpy arrays, which it changes in place, and numbers."""
    sources = shaders(func)
    cuda = emulated_cuda.target()
    with cuda, emulated_cuda.compiling():
        module = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=cuda)
    source = module.mod.imports[0].inspect_source("cuda")
    parameters = {name: _parameters(text) for name, text in _SIGNATURE.findall(source)}

    def dispatch(kernel: str, grid: tuple[int, ...], _block: tuple[int, ...], values) -> None:
        _dispatch(kernel, sources[kernel], grid, parameters[kernel], values)

    tensors = [
        tvm.runtime.tensor(value, emulated_cuda.device()) if isinstance(value, np.ndarray) else value
        for value in arguments
    ]
    with emulated_cuda.launching(dispatch):
        module["main"](*tensors)
    for value, tensor in zip(arguments, tensors):
        if isinstance(value, np.ndarray):
            value[...] = tensor.numpy()


def shaders(func: tvm.tirx.PrimFunc) -> dict[str, str]:
    """WGSL by kernel name."""
    target = parse_target("webgpu")
    with target:
        module = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=target)
    _, *named = _SHADER.split(module.mod.imports[0].inspect_source())
    texts = dict.fromkeys(named[::2], "")
    for name, text in zip(named[::2], named[1::2], strict=True):
        texts[name] += text
    return texts


def _parameters(signature: str) -> list[tuple[str, str]]:
    """(type, name) of each parameter of a CUDA kernel."""
    return [
        tuple(re.sub(r"\s*__restrict__\s*|\bconst\b", " ", parameter).strip().rsplit(None, 1))
        for parameter in signature.split(",")
    ]


def _dispatch(kernel: str, shader: str, grid: tuple[int, ...], parameters: list[tuple[str, str]], values) -> None:
    import wgpu

    device, usage = _device(), wgpu.BufferUsage
    arguments = {}
    for (dtype, name), place in zip(parameters, values[: len(parameters)], strict=True):
        dtype = ctypes.c_void_p if dtype.endswith("*") else _C_TYPES[dtype]
        arguments[name] = dtype.from_address(place).value
    layout, entries, changed = [], [], []
    for binding, access, name in _BUFFER.findall(shader):
        num_bytes = emulated_cuda.bytes_from(arguments[name])
        data = ctypes.string_at(arguments[name], num_bytes) + bytes(-num_bytes % 4)
        buffer = device.create_buffer_with_data(data=data, usage=usage.STORAGE | usage.COPY_SRC)
        if access != "read":
            changed.append((arguments[name], num_bytes, buffer))
        kind = "read-only-storage" if access == "read" else "storage"
        _bind(layout, entries, int(binding), kind, buffer)
    uniform = re.search(r"@binding\((\d+)\) var<uniform>", shader)
    if uniform:
        fields = re.search(r"struct PODArgs \{(.*?)\}", shader, re.DOTALL)[1]
        data = b"".join(
            struct.pack(_FORMATS[dtype], grid[0] - 1 if name == "packGridDimX" else arguments[name])
            for name, dtype in re.findall(r"(\w+)\s*:\s*(\w+)", fields)
        )
        buffer = device.create_buffer_with_data(data=data + bytes(-len(data) % 16), usage=usage.UNIFORM)
        _bind(layout, entries, int(uniform[1]), "uniform", buffer)
    group_layout = device.create_bind_group_layout(entries=layout)
    pipeline = device.create_compute_pipeline(
        layout=device.create_pipeline_layout(bind_group_layouts=[group_layout]),
        compute={"module": validate(shader), "entry_point": kernel},
    )
    commands = device.create_command_encoder()
    compute = commands.begin_compute_pass()
    compute.set_pipeline(pipeline)
    compute.set_bind_group(0, device.create_bind_group(layout=group_layout, entries=entries))
    compute.dispatch_workgroups(*grid)
    compute.end()
    device.queue.submit([commands.finish()])
    for address, num_bytes, buffer in changed:
        ctypes.memmove(address, bytes(device.queue.read_buffer(buffer)), num_bytes)


def _bind(layout: list, entries: list, binding: int, kind: str, buffer) -> None:
    import wgpu

    layout.append({"binding": binding, "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": kind}})
    entries.append({"binding": binding, "resource": {"buffer": buffer, "offset": 0, "size": buffer.size}})
