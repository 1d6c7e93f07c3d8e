import pytest
from tvm.target import Target

from tir_kernels.gpu.features import GPUFeatures, gpu_features

_EXPECTED = {
    "sm_80": ({"kind": "cuda", "arch": "sm_80"}, GPUFeatures("cuda", 32, 1024, 49152, True, True, False)),
    "sm_90a": ({"kind": "cuda", "arch": "sm_90a"}, GPUFeatures("cuda", 32, 1024, 49152, True, True, False)),
    "sm_120": ({"kind": "cuda", "arch": "sm_120"}, GPUFeatures("cuda", 32, 1024, 49152, True, True, False)),
    "sm_75": ({"kind": "cuda", "arch": "sm_75"}, GPUFeatures("cuda", 32, 1024, 49152, False, False, False)),
    "metal": ({"kind": "metal"}, GPUFeatures("metal", 32, 1024, 32768, False, False, True)),
    "webgpu": ({"kind": "webgpu"}, GPUFeatures("webgpu", 32, 256, 32768, False, False, False)),
    "small-webgpu": (
        {"kind": "webgpu", "max_shared_memory_per_block": 16384},
        GPUFeatures("webgpu", 32, 256, 16384, False, False, False),
    ),
    "vulkan": ({"kind": "vulkan"}, GPUFeatures("vulkan", 32, 256, 16384, False, False, False)),
    "opencl": ({"kind": "opencl"}, GPUFeatures("opencl", 32, 256, 16384, False, False, False)),
    "rocm": ({"kind": "rocm", "mcpu": "gfx1100"}, GPUFeatures("rocm", 64, 256, 65536, False, True, False)),
}


@pytest.mark.parametrize("name", _EXPECTED)
def test_features_of_a_target(name):
    attributes, expected = _EXPECTED[name]
    assert gpu_features(Target(attributes, host={"kind": "llvm"})) == expected
