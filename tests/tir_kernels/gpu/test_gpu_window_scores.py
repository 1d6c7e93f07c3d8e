"""kv_window_scores on a GPU against float64 softmax, over shuffled pages and a ring that hold NaN where nothing is."""

import compression_oracle
import numpy as np
import pytest
from compression_steps import check_window_scores
from gpu import emulated_cuda
from paged_cache import page_table, random_cache

from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.window_scores import window_scores

_SHAPES = [
    pytest.param((14, 2, 64, 64, 32, "float16"), id="g7-d64-w32-f16"),
    pytest.param((3, 3, 80, 16, 5, "bfloat16"), id="g1-d80-page16-w5-bf16"),
    pytest.param((6, 2, 96, 64, 16, "float32"), id="g3-d96-w16-f32"),
]
_GPU = gpu_features(emulated_cuda.target())


@pytest.mark.parametrize("shape", _SHAPES)
def test_window_scores(shape):
    head_dim, window = shape[2], shape[4]
    kernel = emulated_cuda.compile(window_scores(*shape, _GPU, head_dim**-0.5))
    check_window_scores(kernel, shape, ((window, 0), (64, 1), (65, window // 2), (700, window - 2)))


def test_entries_that_no_query_sees():
    """A head with fewer entries than the window has queries: the oldest queries see nothing and add nothing."""
    rng = np.random.default_rng(1)
    kernel = emulated_cuda.compile(window_scores(2, 2, 16, 16, 8, "float32", _GPU, 0.25))
    cache = random_cache(rng, [[3], [0]], 16, 16, "float32")
    observed = rng.standard_normal((8, 2, 16)).astype(np.float32)
    observed[:5, 0] = np.nan
    scores = np.full((2, 5), np.nan, np.float32)
    with emulated_cuda.thread_order("backward"):
        kernel(observed, 0, 7, cache.k_pages, page_table(cache), cache.kv_lengths[:, 0].copy(), scores)
    expected = compression_oracle.window_scores(observed[5:, :1], [cache.keys[0][0]], 0.25)[0] * 3 / 8
    np.testing.assert_allclose(scores[0], [*expected, 0, 0], rtol=1e-5)
    np.testing.assert_array_equal(scores[1], 0)
