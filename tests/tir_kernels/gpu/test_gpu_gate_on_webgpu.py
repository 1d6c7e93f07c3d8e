"""The kernels of the gate and of the compression as WGSL: within the limits that every WebGPU device has.

https://www.w3.org/TR/webgpu/#limits (defaults) and https://www.w3.org/TR/WGSL/#reserved-words.
"""

import math
import re

import pytest
import tvm
from tvm.target import Target

from tir_kernels.gpu.block_representatives import block_representatives
from tir_kernels.gpu.compact import compact
from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.observe import observe
from tir_kernels.gpu.select_blocks import select_blocks
from tir_kernels.gpu.select_entries import select_entries
from tir_kernels.gpu.window_scores import window_scores

_MAX_WORKGROUP_BYTES = 16384
_MAX_INVOCATIONS = 256
_MAX_STORAGE_BUFFERS = 8
_BYTES = {"f32": 4, "i32": 4, "f16": 2}
_RESERVED = {"shared", "target", "precise", "filter", "active", "common", "resource", "groupshared", "package", "self"}

_TARGET = Target(
    {"kind": "webgpu", "max_shared_memory_per_block": _MAX_WORKGROUP_BYTES, "max_num_threads": _MAX_INVOCATIONS},
    host={"kind": "llvm"},
)
_GPU = gpu_features(_TARGET)
_FORMS = {"code": ("code", "head", "online", 0.0, True), "paper": ("paper", "amax", "prompt", 0.25, False)}
_KERNELS = {
    "block_representatives": lambda: block_representatives(4, 128, 64, 8, "float16", _GPU),
    "observe": lambda: observe(28, 4, 128, 64, 512, 8, "float16", _GPU, *_FORMS["code"]),
    "observe_paper": lambda: observe(32, 4, 256, 64, 512, 32, "float32", _GPU, *_FORMS["paper"]),
    "select_blocks": lambda: select_blocks(4, 512, 8, _GPU),
    "window_scores": lambda: window_scores(28, 4, 128, 64, 32, "float16", _GPU, 0.1),
    "select_entries": lambda: select_entries(4, _GPU),
    "compact": lambda: compact(4, 128, 64, "float32", _GPU),
}


@pytest.mark.parametrize("name", _KERNELS)
def test_limits_of_webgpu(name):
    kernel = _KERNELS[name]().with_attr("global_symbol", "main")
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
