"""Kernels as WGSL: within the limits that every WebGPU device has.

https://www.w3.org/TR/webgpu/#limits (defaults) and https://www.w3.org/TR/WGSL/#reserved-words.
"""

import math
import re

import tvm
from tvm.target import Target

from tir_kernels.gpu.features import gpu_features

_MAX_WORKGROUP_BYTES = 16384
_MAX_INVOCATIONS = 256
_MAX_STORAGE_BUFFERS = 8
_BYTES = {"f32": 4, "i32": 4, "f16": 2}
_RESERVED = {"shared", "target", "precise", "filter", "active", "common", "resource", "groupshared", "package", "self"}

_TARGET = Target(
    {"kind": "webgpu", "max_shared_memory_per_block": _MAX_WORKGROUP_BYTES, "max_num_threads": _MAX_INVOCATIONS},
    host={"kind": "llvm"},
)
WEBGPU = gpu_features(_TARGET)


def check_webgpu_limits(kernel: tvm.tirx.PrimFunc) -> None:
    kernel = kernel.with_attr("global_symbol", "main")
    with _TARGET:
        built = tvm.compile(tvm.IRModule({"main": kernel}), target=_TARGET).mod
    shaders = [s for s in re.split(r"(?=// Function: )", built.imports[0].inspect_source()) if "@compute" in s]
    assert len(shaders) == len(re.findall(r"@compute", built.imports[0].inspect_source()))
    for wgsl in shaders:
        shared = re.findall(r"var<workgroup> \w+ : array<(\w+), (\d+)>", wgsl)
        assert sum(-(-_BYTES[dtype] * int(count) // 16) * 16 for dtype, count in shared) <= _MAX_WORKGROUP_BYTES
        (size,) = re.findall(r"@workgroup_size\((\d+), (\d+), (\d+)\)", wgsl)
        assert math.prod(map(int, size)) <= _MAX_INVOCATIONS
        assert 1 <= wgsl.count("var<storage") <= _MAX_STORAGE_BUFFERS
        assert not _RESERVED & set(re.findall(r"\b(?:var|let)(?:<[^>]*>)? (\w+)", wgsl))
        assert all(int(literal) < 2**31 for literal in re.findall(r"\b(\d+)i\b", wgsl))
