"""attention_gated on a GPU against float64 attention of chosen entries, and against attention_prefill to the bit."""

import numpy as np
import pytest
from gated_steps import DENSE, GATED, PAGE, SEGMENT, Step, cases, gated_step, queries
from gpu import emulated_cuda
from gpu_kinds import GPUS
from paged_cache import query_tiles

from tir_kernels.gpu.attention_gated import attention_gated
from tir_kernels.gpu.attention_prefill import attention_prefill
from tir_kernels.gpu.features import GPUFeatures

_SHAPES = [
    pytest.param(7, 1, 64, 8, "float16", "tensor cores", id="g7-d64-block8-f16"),
    pytest.param(2, 2, 80, 16, "bfloat16", "tensor cores", id="g1-d80-block16-bf16"),
    pytest.param(3, 1, 128, 32, "float16", "tensor cores", id="g3-d128-block32-f16"),
    pytest.param(2, 2, 64, 64, "bfloat16", "tensor cores", id="g1-d64-block64-bf16"),
    pytest.param(3, 1, 48, 8, "float32", "tensor cores", id="g3-d48-block8-f32"),
    pytest.param(3, 1, 64, 16, "float16", "small", id="g3-d64-block16-f16-on-a-small-gpu"),
]


def _gated(heads: int, kv_heads: int, head_dim: int, block_size: int, dtype: str, gpu: GPUFeatures):
    return emulated_cuda.compile(
        attention_gated(heads, kv_heads, head_dim, PAGE, SEGMENT, block_size, dtype, gpu, head_dim**-0.5)
    )


def _attend(kernel, q: np.ndarray, step: Step) -> np.ndarray:
    out = np.full(q.shape, np.nan, q.dtype)
    kernel(*step.arguments(q), out)
    return out


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_size", "dtype", "kind"), _SHAPES)
def test_attention_gated(heads, kv_heads, head_dim, block_size, dtype, kind):
    kernel = _gated(heads, kv_heads, head_dim, block_size, dtype, GPUS[kind])
    orders = ("forward", "backward", 7)
    for order, (step, q, expected) in zip(orders, cases(heads, kv_heads, head_dim, block_size, dtype, "model", False)):
        with emulated_cuda.thread_order(order):
            error = np.abs(_attend(kernel, q, step).astype(np.float64) - expected.out)
        assert np.all(error <= expected.error_bound(dtype, rounded_weights=True))


@pytest.mark.parametrize(("block_size", "dtype"), [(8, "float16"), (32, "float32")])
def test_all_blocks_or_a_dense_tile_equal_attention_prefill(block_size, dtype):
    rng = np.random.default_rng(1)
    heads, kv_heads, head_dim = 3, 1, 64
    gpu = GPUS["tensor cores"]
    kernel = _gated(heads, kv_heads, head_dim, block_size, dtype, gpu)
    dense = emulated_cuda.compile(attention_prefill(heads, kv_heads, head_dim, PAGE, dtype, gpu, head_dim**-0.5))
    sequences = [(128, 256, [GATED, DENSE], 0), (0, 256, [DENSE, GATED], 0)]
    step = gated_step(rng, sequences, kv_heads, head_dim, block_size, dtype, np.arange)
    q = queries(rng, step, heads, head_dim, dtype)
    inputs = step.arguments(q)[:8]
    inputs[4] = query_tiles(step.query_lengths)
    expected = np.full(q.shape, np.nan, q.dtype)
    dense(*inputs, expected)
    np.testing.assert_array_equal(_attend(kernel, q, step), expected)


def test_sizes_that_do_not_nest():
    for page_size, segment_size, block_size in ((64, 96, 8), (64, 128, 48), (48, 96, 12)):
        with pytest.raises(ValueError, match="do not nest"):
            attention_gated(2, 1, 64, page_size, segment_size, block_size, "float16", GPUS["small"], 0.125)
