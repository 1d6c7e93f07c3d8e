"""Kernels of every kind of step as WGSL on lavapipe, against numpy."""

import numpy as np
import pytest
from gpu import wgsl
from gpu.kernel_code import kernels_of_a_layer
from paged_cache import NUMPY_DTYPE, query_tiles, random_cache, reference_attention

from passes.target import parse_target
from tir_kernels.gpu.attention_decode import attention_decode
from tir_kernels.gpu.attention_prefill import attention_prefill
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


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("query_lengths", [[1, 1, 1], [70, 1, 33]], ids=["decode", "prefill"])
def test_attention(dtype, query_lengths):
    heads, kv_heads, head_dim, page_size = 4, 2, 64, 64
    rng = np.random.default_rng(0)
    cache = random_cache(rng, [[70, 1, 203], [75, 1, 208]], head_dim, page_size, dtype)
    q = rng.standard_normal((sum(query_lengths), heads, head_dim)).astype(NUMPY_DTYPE[dtype])
    out = np.full(q.shape, np.nan, q.dtype)
    shape = (heads, kv_heads, head_dim, page_size, dtype, _GPU, head_dim**-0.5)
    wgsl.run(
        attention_decode(*shape, 2) if max(query_lengths) == 1 else attention_prefill(*shape),
        q,
        cache.k_pages,
        cache.v_pages,
        np.cumsum([0, *query_lengths], dtype=np.int32),
        query_tiles(query_lengths),
        cache.page_indptr,
        cache.page_indices,
        cache.kv_lengths,
        out,
    )
    expected = reference_attention(q, cache, query_lengths, head_dim**-0.5)
    error = np.abs(out.astype(np.float64) - expected.out)
    assert np.all(error <= expected.error_bound(dtype, rounded_weights=False))
