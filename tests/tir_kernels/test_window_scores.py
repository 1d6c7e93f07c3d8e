"""kv_window_scores against float64 softmax, over shuffled pages and a ring that hold NaN wherever nothing is."""

import compression_oracle
import numpy as np
import pytest
import tvm
from compiled import compiled
from paged_cache import NUMPY_DTYPE, page_table, random_cache

from tir_kernels.cpu.window_scores import window_scores

_SHAPES = [
    pytest.param(14, 2, 64, 64, 32, "bfloat16", "model", id="g7-d64-w32-bf16"),
    pytest.param(3, 3, 80, 16, 5, "bfloat16", "model", id="g1-d80-page16-w5-bf16"),
    pytest.param(6, 2, 96, 64, 16, "float32", "model", id="g3-d96-w16-f32"),
    pytest.param(14, 2, 64, 64, 32, "bfloat16", "int8", id="g7-d64-w32-int8"),
]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "page_size", "window", "dtype", "kv_dtype"), _SHAPES)
def test_window_scores(isa_target, heads, kv_heads, head_dim, page_size, window, dtype, kv_dtype):
    target, isa = isa_target
    rng = np.random.default_rng(0)
    sm_scale = head_dim**-0.5
    function = window_scores(heads, kv_heads, head_dim, page_size, window, dtype, isa, sm_scale, kv_dtype)
    kernel = compiled(function, target)
    for length, newest in ((window, 0), (63, window - 1), (64, 1), (65, window // 2), (1000, 3), (5000, window - 2)):
        lengths = [length + 7 * h for h in range(kv_heads)]
        cache = random_cache(rng, [[n] for n in lengths], head_dim, page_size, dtype, kv_dtype)
        # Rows of very different temperature: flat ones, and peaked ones whose maximum is raised many times.
        q = rng.standard_normal((window, heads, head_dim)) * rng.uniform(0.1, 10, (window, heads, 1))
        q = q.astype(NUMPY_DTYPE[dtype])
        observed = np.full((3 * window, heads, head_dim), np.nan, q.dtype)
        observed[window + (newest + 1 + np.arange(window)) % window] = q
        scores = tvm.runtime.tensor(np.full((kv_heads, max(lengths) + 13), np.nan, np.float32))
        inputs = [tvm.runtime.tensor(a) for a in (cache.k_pages, page_table(cache), cache.kv_lengths[:, 0].copy())]
        kernel(tvm.runtime.tensor(observed), window, newest, *inputs, scores)

        keys = [cache.keys[h][0] for h in range(kv_heads)]
        group = heads // kv_heads
        for h, expected in enumerate(compression_oracle.window_scores(q, keys, sm_scale)):
            magnitude = (np.abs(q[:, h * group : (h + 1) * group].astype(np.float64)) @ np.abs(keys[h]).T).max()
            # A score is a sum of d products, scaled, less the maximum: numerator and denominator carry its error and
            # that of exp2. Then sums over the entries by lane and over the rows, one rounding after the other.
            # Rotated queries and keys carry a few roundings more, and their products are up to sqrt(d) as large.
            logit = (head_dim + 8) * 2.0**-24 * magnitude * sm_scale * (1 if kv_dtype == "model" else head_dim**0.5)
            relative = 2 * (logit + 4e-7) + (len(expected) / 4 + len(q) * group) * 2.0**-24
            actual = scores.numpy()[h].astype(np.float64)
            assert np.all(np.abs(actual[: len(expected)] - expected) <= relative * expected + 1e-37)
            assert np.all(actual[len(expected) :] == 0)


def test_entries_that_no_query_sees(isa_target):
    """A head with fewer entries than the window has queries: the oldest queries see nothing and add nothing."""
    target, isa = isa_target
    rng = np.random.default_rng(1)
    kernel = compiled(window_scores(2, 2, 16, 16, 8, "float32", isa, 0.25), target)
    cache = random_cache(rng, [[3], [0]], 16, 16, "float32")
    observed = rng.standard_normal((8, 2, 16)).astype(np.float32)
    observed[:5, 0] = np.nan
    scores = tvm.runtime.tensor(np.full((2, 5), np.nan, np.float32))
    inputs = [tvm.runtime.tensor(a) for a in (cache.k_pages, page_table(cache), cache.kv_lengths[:, 0].copy())]
    kernel(tvm.runtime.tensor(observed), 0, 7, *inputs, scores)
    expected = compression_oracle.window_scores(observed[5:, :1], [cache.keys[0][0]], 0.25)[0] * 3 / 8
    np.testing.assert_allclose(scores.numpy()[0], [*expected, 0, 0], rtol=1e-5)
    np.testing.assert_array_equal(scores.numpy()[1], 0)
