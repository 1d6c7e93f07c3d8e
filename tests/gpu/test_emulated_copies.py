"""cp.async: copies land when they are waited for. Tensor core attention has both; without its waits it must fail."""

import numpy as np
from gpu import emulated_cuda
from gpu.edited_source import edited_source
from paged_cache import query_tiles, random_cache, reference_attention

from tir_kernels.gpu.attention_prefill import attention_prefill
from tir_kernels.gpu.features import gpu_features

_SHAPE = (2, 1, 64, 64, "float16")


def _attention(kernel) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel says of 40 tokens after 60, and what it should."""
    rng = np.random.default_rng(0)
    cache = random_cache(rng, [[100]], 64, 64, "float16")
    q = rng.standard_normal((40, 2, 64)).astype("float16")
    out = np.full(q.shape, np.nan, q.dtype)
    pages = (cache.k_pages, cache.v_pages, np.array([0, 40], np.int32), query_tiles([40]))
    kernel(q, *pages, cache.page_indptr, cache.page_indices, cache.kv_lengths, out)
    return out.astype("float64"), reference_attention(q, cache, [40], 64**-0.5).out


def _compiled():
    return emulated_cuda.compile(attention_prefill(*_SHAPE, gpu_features(emulated_cuda.target()), 64**-0.5))


def test_copies_that_are_waited_for_arrive():
    found, expected = _attention(_compiled())
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_copies_that_no_one_waits_for_do_not_arrive():
    with edited_source(r"cp\.async\.wait_group[^\"]*", ""):
        kernel = _compiled()
    found, expected = _attention(kernel)
    assert not np.allclose(found, expected, atol=5e-3)
