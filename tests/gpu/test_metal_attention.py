"""Attention as Metal source on the CPU (metal_shim), against numpy, in several thread orders."""

import numpy as np
import pytest
from gated_steps import PAGE, SEGMENT, cases
from gpu import emulated_cuda, metal_shim, metal_to_cpp
from gpu.edited_source import edit_metal_source
from paged_cache import NUMPY_DTYPE, check_attention, random_cache

from tir_kernels.gpu.attention_decode import attention_decode
from tir_kernels.gpu.attention_gated import attention_gated
from tir_kernels.gpu.attention_prefill import attention_prefill
from tir_kernels.gpu.features import gpu_features

_GPU = gpu_features(metal_shim.TARGET)
_ORDERS = ("forward", "backward", 7)
_MAX_THREADGROUP_BYTES = 32768


def _check(kernel, order, query_lengths: list[int], shape: tuple, rounded_weights: bool) -> None:
    """Sequences of 70, 1 and 203 entries or a few more, whose newest are the queries'."""
    heads, kv_heads, head_dim, page_size, dtype = shape
    rng = np.random.default_rng(0)
    lengths = [[70 + 5 * head, 1, 203 + 5 * head] for head in range(kv_heads)]
    cache = random_cache(rng, lengths, head_dim, page_size, dtype)
    # Rows of very different temperature: flat ones, and peaked ones whose running maximum is raised many times.
    q = rng.standard_normal((sum(query_lengths), heads, head_dim)) * rng.uniform(0.1, 10, (1, heads, 1))
    with emulated_cuda.thread_order(order):
        check_attention(kernel, q.astype(NUMPY_DTYPE[dtype]), cache, query_lengths, dtype, rounded_weights)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_decode(dtype):
    shape = (4, 2, 64, 64, dtype)
    kernel = metal_shim.compile(attention_decode(*shape, _GPU, 64**-0.5, 2))
    for order in _ORDERS:
        _check(kernel, order, [1, 1, 1], shape, rounded_weights=False)


@pytest.mark.parametrize(
    ("shape", "orders"),
    [
        ((4, 2, 64, 64, "float16"), _ORDERS),
        ((3, 3, 80, 16, "float16"), ("backward",)),  # the last matrices of a row are two of four
        ((7, 1, 128, 64, "float16"), (7,)),
        ((2, 1, 192, 32, "float16"), ("forward",)),  # too many dimensions for 16 rows of a simdgroup
        ((4, 2, 64, 64, "float32"), _ORDERS),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_prefill(shape, orders):
    kernel = metal_shim.compile(attention_prefill(*shape, _GPU, shape[2] ** -0.5))
    for order in orders:
        _check(kernel, order, [70, 1, 33], shape, rounded_weights=shape[-1] == "float16")


@pytest.mark.parametrize("shape", [(3, 1, 64, 16, "float16"), (4, 2, 80, 32, "float32")], ids=["float16", "float32"])
def test_gated_attention(shape):
    heads, kv_heads, head_dim, block_size, dtype = shape
    kernel = metal_shim.compile(
        attention_gated(heads, kv_heads, head_dim, PAGE, SEGMENT, block_size, dtype, _GPU, head_dim**-0.5)
    )
    for order, (step, q, expected) in zip(_ORDERS, cases(*shape, "model", False)):
        out = np.full(q.shape, np.nan, q.dtype)
        with emulated_cuda.thread_order(order):
            kernel(*step.arguments(q), out)
        error = np.abs(out.astype(np.float64) - expected.out)
        assert np.all(error <= expected.error_bound(dtype, rounded_weights=dtype == "float16"))


@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_source_has_simdgroup_matrices(head_dim):
    prefill = attention_prefill(8, 2, head_dim, 64, "float16", _GPU, 0.1)
    gated = attention_gated(8, 2, head_dim, PAGE, SEGMENT, 8, "float16", _GPU, 0.1)
    for func in (prefill, gated):
        (text,) = metal_to_cpp.kernels(metal_shim.source(func)).values()
        assert metal_to_cpp.threadgroup_bytes(text) <= _MAX_THREADGROUP_BYTES
        matrices = head_dim // 8
        row_tiles = 2 if head_dim <= 128 else 1
        # Scores, weighted values, and outputs that a new maximum rescales.
        products = row_tiles * (matrices * 4 + matrices * 4 + matrices)
        assert text.count("simdgroup_multiply_accumulate(") == products


def test_source_of_float32_has_none():
    text = metal_shim.source(attention_prefill(4, 2, 64, 64, "float32", _GPU, 0.1))
    assert "simdgroup_multiply_accumulate(" not in text


@pytest.mark.parametrize("barrier", ["threadgroup_barrier", "simdgroup_barrier"])
def test_a_dropped_barrier_is_a_race(monkeypatch, barrier):
    shape = (4, 2, 64, 64, "float16")
    edit_metal_source(monkeypatch, f"{barrier}(mem_flags::mem_threadgroup);", "")
    kernel = metal_shim.compile(attention_prefill(*shape, _GPU, 0.1))
    with pytest.raises(RuntimeError, match="race in shared memory"):
        _check(kernel, "forward", [70, 1, 33], shape, rounded_weights=True)
