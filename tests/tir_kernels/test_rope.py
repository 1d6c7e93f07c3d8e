"""rope_table and rope_append against float64 numpy.

The angles of the table are the same float32 products as the oracle's; the kernel promises 1e-6.
"""

import int8_entries
import numpy as np
import pytest
from compiled import compiled, on_arrays, run
from paged_cache import NUMPY_DTYPE
from rope_steps import Append, check_newest_queries, rotate, slots_of_steps

from tir_kernels.cpu.rope_append import rope_append
from tir_kernels.cpu.rope_table import rope_table


@pytest.mark.parametrize(("rotary_dim", "scaling"), [(64, 1.0), (80, 1.25), (16, 1.0)])
def test_rope_table(isa_target, rotary_dim, scaling):
    target, isa = isa_target
    rng = np.random.default_rng(0)
    positions = np.concatenate([np.arange(50), rng.integers(0, 10**7, 500)]).astype(np.int32)
    inv_freq = (1 / 10000 ** (np.arange(0, rotary_dim, 2) / rotary_dim)).astype(np.float32)
    kernel = compiled(rope_table(rotary_dim, isa, scaling), target)
    for step in (positions, positions[-3:]):  # three rows are not worth a parallel region
        table = run(kernel, step, inv_freq, shape=(len(step), rotary_dim), dtype="float32")
        angles = (step.astype(np.float32)[:, None] * inv_freq).astype(np.float64)
        expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * scaling
        np.testing.assert_allclose(table, expected, rtol=0, atol=1e-6 * scaling)


class _Int8Append(Append):
    """The same for 8-bit pages."""

    def random_pools(self, rng, num_pages):
        shape = (num_pages, self.page, self.d)
        codes = [rng.integers(-127, 128, shape) for _ in range(2)]
        scales = [rng.random(shape[:2]).astype(np.float32) for _ in range(2)]
        return int8_entries.pack_keys(codes[0], scales[0]), int8_entries.pack_values(codes[1], scales[1])

    def check_pools(self, before, after, slots, k, v):
        """The new entries are within half a step of k and v [n, G, d], and no other byte has changed."""
        unpacked = [
            (int8_entries.unpack_keys(pools[0]), int8_entries.unpack_values(pools[1], self.page))
            for pools in (before, after)
        ]
        places = slots // self.page, slots % self.page
        for (old_codes, old_scales), (codes, scales), x in zip(*unpacked, (int8_entries.rotated(k), v)):
            x = x.transpose(1, 0, 2)
            step = scales[places][..., None].astype(np.float64)
            np.testing.assert_allclose(step[..., 0], np.abs(x).max(-1) / 127, rtol=1e-5)
            # RoPE of the float32 kernel, and its sums of the rotation, differ by a few roundings of numbers below 32.
            assert np.all(np.abs(codes[places] * step - x) <= 0.5 * step + 2e-5)
            old_codes[places], old_scales[places] = codes[places], scales[places]
            np.testing.assert_array_equal(codes, old_codes)
            np.testing.assert_array_equal(scales, old_scales)


class _CentredAppend(_Int8Append):
    """Keys less what the mean rotation makes of their bias."""

    def __init__(self, run, *shape):
        super().__init__(self._run_centred, *shape)
        self.kernel = run
        rng = np.random.default_rng(3)
        heads = self.heads + 2 * self.kv_heads
        self.bias = rng.standard_normal((1, heads, self.d)).astype(NUMPY_DTYPE[self.dtype])
        self.mean = rng.uniform(-1, 1, (1, self.rotary)).astype(np.float32)

    def _run_centred(self, qkv, table, slots, *pools_and_q):
        self.kernel(qkv, table, slots, self.bias, self.mean, *pools_and_q)

    def check_pools(self, before, after, slots, k, v):
        cos, sin = np.split(self.mean.astype(np.float64), 2, axis=1)
        centre = rotate(self.bias[:, self.heads : self.heads + self.kv_heads].astype(np.float64), cos, sin)
        super().check_pools(before, after, slots, k - centre, v)


_SHAPES = [
    pytest.param((14, 2, 64, 64, 64, "bfloat16"), id="qwen-bf16"),
    pytest.param((3, 1, 80, 32, 16, "bfloat16"), id="partial-rotary-bf16"),
    pytest.param((4, 4, 96, 96, 64, "float32"), id="mha-f32"),
]


def _kernel(isa_target, shape, **options):
    target, isa = isa_target
    return on_arrays(compiled(rope_append(*shape, isa, **options), target))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param(Append, {}, id="model"),
        pytest.param(_Int8Append, {"kv_dtype": "int8"}, id="int8"),
        pytest.param(_CentredAppend, {"kv_dtype": "int8", "centred": True}, id="centred"),
    ],
)
@pytest.mark.parametrize("shape", _SHAPES)
def test_rope_append(isa_target, shape, kind, options):
    append = kind(_kernel(isa_target, shape, **options), *shape)
    for slots in slots_of_steps(append.kv_heads, append.page):
        append.check(slots)


@pytest.mark.parametrize("shape", _SHAPES)
def test_rope_append_keeps_the_newest_queries(isa_target, shape):
    check_newest_queries(Append(_kernel(isa_target, shape, window=True), *shape))


def test_runs_of_different_sequences_are_not_merged(isa_target):
    """Slots whose first and last match a run of consecutive entries, but not those between."""
    shape = (1, 1, 64, 64, 64, "bfloat16")
    append = Append(_kernel(isa_target, shape), *shape)
    slots = np.arange(16)
    slots[1:15] = slots[14:0:-1]
    append.check(slots[None])
