"""rope_table and rope_append on a GPU against float64 numpy."""

import numpy as np
import pytest
from gpu import emulated_cuda
from rope_steps import Append, check_newest_queries, slots_of_steps

from runtime.errors import UserError
from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.rope_append import rope_append
from tir_kernels.gpu.rope_table import rope_table

_SHAPES = [
    pytest.param((14, 2, 64, 64, 64, "float16"), id="qwen-f16"),
    pytest.param((3, 1, 80, 32, 16, "bfloat16"), id="partial-rotary-bf16"),
    pytest.param((4, 4, 96, 96, 64, "float32"), id="mha-f32"),
]


@pytest.fixture(scope="module")
def gpu():
    return gpu_features(emulated_cuda.target())


@pytest.mark.parametrize(("rotary_dim", "scaling"), [(64, 1.0), (80, 1.25)])
def test_rope_table(gpu, rotary_dim, scaling):
    rng = np.random.default_rng(0)
    positions = np.concatenate([np.arange(50), 2 ** np.arange(24), rng.integers(0, 10**7, 500)]).astype(np.int32)
    inv_freq = (1 / 10000 ** (np.arange(0, rotary_dim, 2) / rotary_dim)).astype(np.float32)
    table = np.full((len(positions), rotary_dim), np.nan, np.float32)
    emulated_cuda.compile(rope_table(rotary_dim, gpu, scaling))(positions, inv_freq, table)
    angles = (positions.astype(np.float32)[:, None] * inv_freq).astype(np.float64)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * scaling
    np.testing.assert_allclose(table, expected, rtol=0, atol=3e-7 * scaling)


@pytest.mark.parametrize("shape", _SHAPES)
def test_rope_append(gpu, shape):
    append = Append(emulated_cuda.compile(rope_append(*shape, gpu)), *shape)
    for order, slots in enumerate(slots_of_steps(append.kv_heads, append.page)):
        with emulated_cuda.thread_order(order):
            append.check(slots)


@pytest.mark.parametrize("shape", _SHAPES)
def test_rope_append_keeps_the_newest_queries(gpu, shape):
    check_newest_queries(Append(emulated_cuda.compile(rope_append(*shape, gpu, window=True)), *shape))


def test_8_bit_pages_are_refused(gpu):
    with pytest.raises(UserError, match="kv_dtype int8 is for CPUs only"):
        rope_append(2, 1, 64, 64, 64, "float16", gpu, kv_dtype="int8")
