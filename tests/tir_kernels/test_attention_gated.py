"""attention_gated against float64 attention over the chosen entries, and against attention_prefill to the bit."""

import numpy as np
import pytest
from compiled import compiled, run
from gated_steps import DENSE, GATED, PAGE, SEGMENT, Step, cases, gated_step, queries
from paged_cache import query_tiles

from tir_kernels.cpu.attention_gated import attention_gated
from tir_kernels.cpu.attention_prefill import attention_prefill
from tir_kernels.cpu.isa import VectorISA

_SHAPES = [
    pytest.param(14, 2, 64, 8, "bfloat16", "model", id="g7-d64-block8-bf16"),
    pytest.param(3, 3, 80, 16, "bfloat16", "model", id="g1-d80-block16-bf16"),
    pytest.param(6, 2, 128, 32, "bfloat16", "model", id="g3-d128-block32-bf16"),
    pytest.param(2, 2, 64, 64, "bfloat16", "model", id="g1-d64-block64-bf16"),
    pytest.param(6, 2, 96, 8, "float32", "model", id="g3-d96-block8-f32"),
    pytest.param(7, 1, 128, 16, "float32", "model", id="g7-d128-block16-f32"),
    pytest.param(2, 2, 64, 32, "float32", "model", id="g1-d64-block32-f32"),
    pytest.param(3, 1, 48, 64, "float32", "model", id="g3-d48-block64-f32"),
    pytest.param(14, 2, 64, 8, "bfloat16", "int8", id="g7-d64-block8-int8"),
    pytest.param(3, 1, 48, 32, "float32", "int8", id="g3-d48-block32-f32-int8"),
]


def _attend(kernel, q: np.ndarray, step: Step) -> np.ndarray:
    return run(kernel, *step.arguments(q), shape=q.shape, dtype=q.dtype.name)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_size", "dtype", "kv_dtype"), _SHAPES)
def test_attention_gated(isa_target, heads, kv_heads, head_dim, block_size, dtype, kv_dtype):
    target, isa = isa_target
    kernel = compiled(_gated(heads, kv_heads, head_dim, block_size, dtype, isa, kv_dtype), target)
    int8_dot = kv_dtype == "int8" and isa.has_int8_dot
    bf16_weights = dtype == "bfloat16" and kv_dtype == "model" and isa.has_bf16_dot
    for step, q, expected in cases(heads, kv_heads, head_dim, block_size, dtype, kv_dtype, int8_dot):
        error = np.abs(_attend(kernel, q, step).astype(np.float64) - expected.out)
        assert np.all(error <= expected.error_bound(dtype, bf16_weights, int8_dot))


@pytest.mark.parametrize(
    ("block_size", "dtype", "kv_dtype"), [(8, "bfloat16", "model"), (32, "float32", "model"), (8, "bfloat16", "int8")]
)
def test_all_blocks_or_a_dense_tile_equal_attention_prefill(isa_target, block_size, dtype, kv_dtype):
    target, isa = isa_target
    rng = np.random.default_rng(1)
    heads, kv_heads, head_dim = 6, 2, 64
    kernel = compiled(_gated(heads, kv_heads, head_dim, block_size, dtype, isa, kv_dtype), target)
    dense = attention_prefill(heads, kv_heads, head_dim, PAGE, dtype, isa, head_dim**-0.5, kv_dtype)
    sequences = [(256, 384, [GATED, DENSE, GATED], 0), (0, 256, [DENSE, GATED], 0)]
    step = gated_step(rng, sequences, kv_heads, head_dim, block_size, dtype, np.arange, kv_dtype)
    q = queries(rng, step, heads, head_dim, dtype)
    stored = step.cache
    expected = run(
        compiled(dense, target),
        q,
        stored.k_pages,
        stored.v_pages,
        np.cumsum([0, *step.query_lengths], dtype=np.int32),
        query_tiles(step.query_lengths),
        stored.page_indptr,
        stored.page_indices,
        stored.kv_lengths,
        shape=q.shape,
        dtype=dtype,
    )
    np.testing.assert_array_equal(_attend(kernel, q, step), expected)


def test_sizes_that_do_not_nest():
    isa = VectorISA("generic", 4)
    for page_size, segment_size, block_size in ((64, 96, 8), (64, 128, 48), (48, 96, 12)):
        with pytest.raises(ValueError, match="do not nest"):
            attention_gated(2, 1, 64, page_size, segment_size, block_size, "float32", isa, 0.125)


def _gated(heads: int, kv_heads: int, head_dim: int, block_size: int, dtype: str, isa: VectorISA, kv_dtype: str):
    return attention_gated(heads, kv_heads, head_dim, PAGE, SEGMENT, block_size, dtype, isa, head_dim**-0.5, kv_dtype)
