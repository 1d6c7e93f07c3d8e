"""Kernels of every kind of step as WGSL on lavapipe, against numpy."""

import numpy as np
import pytest
from gpu import wgsl
from gpu.kernel_code import kernels_of_a_layer

from passes.target import parse_target
from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.softmax import softmax_with_temperature

pytestmark = pytest.mark.skipif(
    wgsl.adapter() is None, reason="no wgpu-py with a Vulkan driver: pip install wgpu, apt install mesa-vulkan-drivers"
)
_GPU = gpu_features(parse_target("webgpu"))


def test_softmax_of_several_nests():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 1, 1000)).astype("float32")
    temperature = np.array([1.0, 0.5, 2.0], "float32")
    probabilities = np.zeros_like(logits)
    wgsl.run(softmax_with_temperature(None, _GPU), logits, temperature, probabilities)
    powers = np.exp(logits.astype("float64") / temperature[:, None, None])
    np.testing.assert_allclose(probabilities, powers / powers.sum(-1, keepdims=True), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_kernel_is_valid(dtype):
    kernels = kernels_of_a_layer(4, 2, 64, 256, dtype, parse_target("webgpu"))
    invalid = {}
    for name, kernel in kernels.items():
        for entry, source in wgsl.shaders(kernel).items():
            try:
                wgsl.validate(source)
            except wgsl.InvalidShader as error:
                invalid[f"{name}: {entry}"] = str(error)
    assert not invalid
