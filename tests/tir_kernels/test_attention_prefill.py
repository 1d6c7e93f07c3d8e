"""attention_prefill against float64 attention, over shuffled pages that hold NaN wherever no entry is."""

import int8_entries
import numpy as np
import pytest
from compiled import compiled, run
from paged_cache import NUMPY_DTYPE, query_tiles, random_cache, reference_attention

from tir_kernels.cpu.attention_prefill import attention_prefill

# (new tokens, entries before them) of each sequence of a batch; the second kv head has 3 entries more and so on.
_RAGGED = [(70, 0), (1, 0), (130, 203), (5, 64), (64, 64), (2, 61)]
_PAGE_EDGES = [(1, 15), (1, 63), (1, 64), (3, 126), (64, 0), (65, 127), (16, 48)]
_SHAPES = [
    pytest.param(14, 2, 64, 64, "bfloat16", "model", id="g7-d64-bf16"),
    pytest.param(3, 3, 80, 16, "bfloat16", "model", id="g1-d80-page16-bf16"),
    pytest.param(6, 2, 128, 64, "bfloat16", "model", id="g3-d128-bf16"),
    pytest.param(6, 2, 96, 64, "float32", "model", id="g3-d96-f32"),
    pytest.param(7, 1, 256, 16, "float32", "model", id="g7-d256-page16-f32"),
    pytest.param(14, 2, 64, 64, "bfloat16", "int8", id="g7-d64-int8"),
    pytest.param(3, 3, 80, 16, "bfloat16", "int8", id="g1-d80-page16-int8"),
    pytest.param(4, 2, 48, 64, "float32", "int8", id="g2-d48-f32-int8"),
    pytest.param(6, 2, 128, 64, "bfloat16", "int8", id="g3-d128-int8"),
]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "page_size", "dtype", "kv_dtype"), _SHAPES)
def test_attention_prefill(isa_target, heads, kv_heads, head_dim, page_size, dtype, kv_dtype):
    target, isa = isa_target
    rng = np.random.default_rng(0)
    sm_scale = head_dim**-0.5
    int8_dot = kv_dtype == "int8" and page_size == 64 and isa.has_int8_dot
    kernel = compiled(attention_prefill(heads, kv_heads, head_dim, page_size, dtype, isa, sm_scale, kv_dtype), target)
    for batch in (_RAGGED, _PAGE_EDGES, [(1, 0)]):
        query_lengths = [new for new, _ in batch]
        kv_lengths = [[new + old + 3 * h * (old > 0) for new, old in batch] for h in range(kv_heads)]
        cache = random_cache(rng, kv_lengths, head_dim, page_size, dtype, kv_dtype)
        # Rows of very different temperature: flat ones, and peaked ones whose running maximum is raised many times.
        n = sum(query_lengths)
        q = rng.standard_normal((n, heads, head_dim)) * rng.uniform(0.1, 10, (n, heads, 1))
        q = q.astype(NUMPY_DTYPE[dtype])
        out = run(
            kernel,
            q,
            cache.k_pages,
            cache.v_pages,
            np.cumsum([0, *query_lengths], dtype=np.int32),
            rng.permutation(query_tiles(query_lengths)),
            cache.page_indptr,
            cache.page_indices,
            cache.kv_lengths,
            shape=q.shape,
            dtype=dtype,
        )
        seen = int8_entries.seen_queries(q) if int8_dot else q
        expected = reference_attention(seen, cache, query_lengths, sm_scale, page_size=page_size)
        error = np.abs(out.astype(np.float64) - expected.out)
        bf16_weights = dtype == "bfloat16" and kv_dtype == "model" and isa.has_bf16_dot
        assert np.all(error <= expected.error_bound(dtype, bf16_weights, int8_dot))
