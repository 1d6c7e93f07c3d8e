"""attention_decode on a GPU against float64 attention, over shuffled pages that hold NaN wherever no entry is."""

import numpy as np
import pytest
from gpu import emulated_cuda
from gpu_kinds import GPUS
from paged_cache import NUMPY_DTYPE, query_tiles, random_cache, reference_attention

from tir_kernels.gpu.attention_decode import attention_decode

_PAGE_EDGES = [1, 2, 15, 16, 17, 63, 64, 65, 128, 129, 200]
_SHAPES = [
    pytest.param(14, 2, 64, 64, "float16", 3, "tensor cores", id="g7-d64-f16"),
    pytest.param(3, 3, 80, 16, "bfloat16", 1, "tensor cores", id="g1-d80-page16-bf16"),
    pytest.param(9, 1, 128, 64, "float16", 2, "tensor cores", id="g9-d128-f16"),
    pytest.param(6, 2, 96, 64, "float32", 4, "tensor cores", id="g3-d96-f32"),
    pytest.param(10, 1, 256, 16, "float32", 2, "tensor cores", id="g10-d256-page16-f32"),
    pytest.param(20, 1, 64, 16, "float16", 5, "tensor cores", id="g20-d64-page16-f16"),
    pytest.param(24, 2, 128, 64, "bfloat16", 2, "tensor cores", id="g12-d128-bf16"),
    pytest.param(4, 2, 256, 64, "bfloat16", 2, "tensor cores", id="g2-d256-bf16"),
    pytest.param(14, 2, 64, 64, "float16", 3, "no tensor cores", id="g7-d64-f16-on-any-gpu"),
    pytest.param(14, 2, 64, 64, "float16", 2, "small", id="g7-d64-f16-on-a-small-gpu"),
    pytest.param(3, 1, 256, 16, "float16", 1, "small", id="g3-d256-page16-f16-on-a-small-gpu"),
]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "page_size", "dtype", "num_splits", "kind"), _SHAPES)
def test_attention_decode(heads, kv_heads, head_dim, page_size, dtype, num_splits, kind):
    rng = np.random.default_rng(0)
    sm_scale = head_dim**-0.5
    function = attention_decode(heads, kv_heads, head_dim, page_size, dtype, GPUS[kind], sm_scale, num_splits)
    kernel = emulated_cuda.compile(function)
    for lengths, order in ((_PAGE_EDGES, "backward"), ([1500], 7), ([1], "forward")):
        kv_lengths = [[length + 5 * h * (length > 2) for length in lengths] for h in range(kv_heads)]
        cache = random_cache(rng, kv_lengths, head_dim, page_size, dtype)
        batch_size = len(lengths)
        # Rows of very different temperature: flat ones, and peaked ones whose running maximum is raised many times.
        q = rng.standard_normal((batch_size, heads, head_dim)) * rng.uniform(0.1, 10, (batch_size, heads, 1))
        q = q.astype(NUMPY_DTYPE[dtype])
        out = np.full(q.shape, np.nan, q.dtype)
        with emulated_cuda.thread_order(order):
            kernel(
                q,
                cache.k_pages,
                cache.v_pages,
                np.arange(batch_size + 1, dtype=np.int32),
                query_tiles([1] * batch_size),
                cache.page_indptr,
                cache.page_indices,
                cache.kv_lengths,
                out,
            )
        expected = reference_attention(q, cache, [1] * batch_size, sm_scale)
        error = np.abs(out.astype(np.float64) - expected.out)
        assert np.all(
            error <= expected.error_bound(dtype, rounded_weights=kind == "tensor cores" and dtype != "float32")
        )
