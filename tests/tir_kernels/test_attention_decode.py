"""attention_decode against float64 attention, over shuffled pages that hold NaN wherever no entry is."""

import int8_entries
import numpy as np
import pytest
from compiled import compiled, run
from paged_cache import NUMPY_DTYPE, query_tiles, random_cache, reference_attention

from tir_kernels.cpu.attention_decode import attention_decode

_PAGE_EDGES = [1, 2, 15, 16, 17, 63, 64, 65, 128, 129, 200]
_SHAPES = [
    pytest.param(14, 2, 64, 64, "bfloat16", "model", 3, id="g7-d64-bf16"),
    pytest.param(3, 3, 80, 16, "bfloat16", "model", 1, id="g1-d80-page16-bf16"),
    pytest.param(6, 2, 128, 64, "bfloat16", "model", 2, id="g3-d128-bf16"),
    pytest.param(6, 2, 96, 64, "float32", "model", 4, id="g3-d96-f32"),
    pytest.param(10, 1, 256, 16, "float32", "model", 2, id="g10-d256-page16-f32"),
    pytest.param(14, 2, 64, 64, "bfloat16", "int8", 3, id="g7-d64-int8"),
    pytest.param(3, 3, 80, 16, "bfloat16", "int8", 1, id="g1-d80-page16-int8"),
    pytest.param(4, 2, 48, 64, "float32", "int8", 2, id="g2-d48-f32-int8"),
    pytest.param(6, 2, 128, 64, "bfloat16", "int8", 2, id="g3-d128-int8"),
]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "page_size", "dtype", "kv_dtype", "num_splits"), _SHAPES)
def test_attention_decode(isa_target, heads, kv_heads, head_dim, page_size, dtype, kv_dtype, num_splits):
    target, isa = isa_target
    rng = np.random.default_rng(0)
    sm_scale = head_dim**-0.5
    int8_dot = kv_dtype == "int8" and page_size == 64 and isa.has_int8_dot
    function = attention_decode(heads, kv_heads, head_dim, page_size, dtype, isa, sm_scale, num_splits, kv_dtype)
    kernel = compiled(function, target)
    for lengths in (_PAGE_EDGES, [5000], [1]):
        kv_lengths = [[length + 5 * h * (length > 2) for length in lengths] for h in range(kv_heads)]
        cache = random_cache(rng, kv_lengths, head_dim, page_size, dtype, kv_dtype)
        batch_size = len(lengths)
        # Rows of very different temperature: flat ones, and peaked ones whose running maximum is raised many times.
        q = rng.standard_normal((batch_size, heads, head_dim)) * rng.uniform(0.1, 10, (batch_size, heads, 1))
        q = q.astype(NUMPY_DTYPE[dtype])
        out = run(
            kernel,
            q,
            cache.k_pages,
            cache.v_pages,
            np.arange(batch_size + 1, dtype=np.int32),
            query_tiles([1] * batch_size),
            cache.page_indptr,
            cache.page_indices,
            cache.kv_lengths,
            shape=q.shape,
            dtype=dtype,
        )
        seen = int8_entries.seen_queries(q) if int8_dot else q
        expected = reference_attention(seen, cache, [1] * batch_size, sm_scale, page_size=page_size)
        error = np.abs(out.astype(np.float64) - expected.out)
        bf16_weights = dtype == "bfloat16" and kv_dtype == "model" and isa.has_bf16_dot
        assert np.all(error <= expected.error_bound(dtype, bf16_weights, int8_dot))
