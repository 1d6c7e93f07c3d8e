"""rope_table and rope_append against float64 numpy.

Bounds. Table: the angles are the same float32 products as the oracle's; the kernel promises 1e-6. RoPE: a product and
the sum round once at 2**-24 relative to |x| + |y| <= 12 (normal deviates), hence 4e-6; bfloat16 rounds at 2**-8.
"""

import int8_entries
import numpy as np
import pytest
import tvm
from compiled import compiled, run
from paged_cache import NUMPY_DTYPE, PAIR, pack_keys, pack_values, unpack_keys, unpack_values

from tir_kernels.cpu.rope_append import rope_append
from tir_kernels.cpu.rope_table import rope_table


def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x [n, heads, d], cos and sin [n, rotary_dim / 2], all float64."""
    half = cos.shape[1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


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


class _Append:
    """A compiled rope_append and one run of it over poisoned pages."""

    def __init__(self, isa_target, heads, kv_heads, head_dim, rotary_dim, page_size, dtype, window=False):
        target, isa = isa_target
        self.heads, self.kv_heads, self.d, self.rotary = heads, kv_heads, head_dim, rotary_dim
        self.page, self.dtype = page_size, dtype
        self.run = compiled(rope_append(heads, kv_heads, head_dim, rotary_dim, page_size, dtype, isa, window), target)

    def check(self, slots: np.ndarray, query_slots: np.ndarray | None = None) -> None:
        """Append one token a column of ``slots`` [G, n] and compare every element of q_out and of both pools.

        ``query_slots`` [n], for a kernel with ``window``: compare every element of ``observed``, too.
        """
        rng = np.random.default_rng(1)
        dtype, n = NUMPY_DTYPE[self.dtype], slots.shape[1]
        num_pages = int(slots.max()) // self.page + 2
        qkv = rng.standard_normal((n, self.heads + 2 * self.kv_heads, self.d)).astype(dtype)
        angles = rng.uniform(-3, 3, (n, self.rotary // 2))
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        before = self.random_pools(rng, num_pages)
        k_pages, v_pages = (tvm.runtime.tensor(pool) for pool in before)
        q_out = tvm.runtime.tensor(np.zeros((n, self.heads, self.d), dtype))
        table = tvm.runtime.tensor(np.concatenate([cos, sin], axis=1))
        qkv_tensor, slots_tensor = tvm.runtime.tensor(qkv), tvm.runtime.tensor(slots.astype(np.int32))
        if query_slots is None:
            self.run(qkv_tensor, table, slots_tensor, k_pages, v_pages, q_out)
        else:
            old_observed = rng.standard_normal((query_slots.max(initial=0) + 3, self.heads, self.d)).astype(dtype)
            observed = tvm.runtime.tensor(old_observed)
            rows = tvm.runtime.tensor(query_slots.astype(np.int32))
            self.run(qkv_tensor, table, slots_tensor, rows, k_pages, v_pages, observed, q_out)
            old_observed[query_slots[query_slots >= 0]] = q_out.numpy()[query_slots >= 0]
            np.testing.assert_array_equal(observed.numpy(), old_observed)

        q, k, v = np.split(qkv.astype(np.float64), [self.heads, self.heads + self.kv_heads], axis=1)
        q, k = (_rotate(x, cos.astype(np.float64), sin.astype(np.float64)) for x in (q, k))
        np.testing.assert_allclose(q_out.numpy().astype(np.float64), q, rtol=self.relative, atol=4e-6)
        self.check_pools(before, (k_pages.numpy(), v_pages.numpy()), slots, k, v)

    @property
    def relative(self) -> float:
        return 2.0**-8 if self.dtype == "bfloat16" else 0.0

    def random_pools(self, rng, num_pages):
        shape = (num_pages, self.page, self.d)
        keys, values = (rng.standard_normal(shape).astype(NUMPY_DTYPE[self.dtype]) for _ in range(2))
        return pack_keys(keys, PAIR[self.dtype]), pack_values(values, PAIR[self.dtype])

    def check_pools(self, before, after, slots, k, v):
        """The new entries are k and v [n, G, d], and no other entry has changed."""
        keys, values = unpack_keys(before[0]).astype(np.float64), unpack_values(before[1]).astype(np.float64)
        for h in range(self.kv_heads):
            keys[slots[h] // self.page, slots[h] % self.page] = k[:, h]
            values[slots[h] // self.page, slots[h] % self.page] = v[:, h]
        found = unpack_keys(after[0]).astype(np.float64)
        np.testing.assert_allclose(found, keys, rtol=self.relative, atol=4e-6)
        np.testing.assert_array_equal(unpack_values(after[1]).astype(np.float64), values)


class _Int8Append(_Append):
    """The same for 8-bit pages."""

    def __init__(self, isa_target, heads, kv_heads, head_dim, rotary_dim, page_size, dtype, window=False):
        target, isa = isa_target
        self.heads, self.kv_heads, self.d, self.rotary = heads, kv_heads, head_dim, rotary_dim
        self.page, self.dtype = page_size, dtype
        function = rope_append(heads, kv_heads, head_dim, rotary_dim, page_size, dtype, isa, window, "int8")
        self.run = compiled(function, target)

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


_SHAPES = [
    pytest.param(14, 2, 64, 64, 64, "bfloat16", id="qwen-bf16"),
    pytest.param(3, 1, 80, 32, 16, "bfloat16", id="partial-rotary-bf16"),
    pytest.param(4, 4, 96, 96, 64, "float32", id="mha-f32"),
]


@pytest.mark.parametrize("kind", [_Append, _Int8Append])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "rotary_dim", "page_size", "dtype"), _SHAPES)
def test_rope_append(isa_target, heads, kv_heads, head_dim, rotary_dim, page_size, dtype, kind):
    append = kind(isa_target, heads, kv_heads, head_dim, rotary_dim, page_size, dtype)
    rng = np.random.default_rng(2)

    def sequence(start: int, length: int) -> np.ndarray:
        """Slots of ``length`` new entries after ``start`` old ones, in shuffled pages of its own for each head."""
        offsets = start + np.arange(length)
        pages = rng.permutation(kv_heads * (offsets[-1] // page_size + 1)).reshape(kv_heads, -1)
        return pages[:, offsets // page_size] * page_size + offsets % page_size

    append.check(sequence(0, 130))  # aligned runs and a tail
    append.check(sequence(5, 100))  # odd start: the words of v_pages are shared between runs
    append.check(sequence(2, 70))  # even, not a multiple of the vector width
    append.check(rng.permutation(300)[: kv_heads * 40].reshape(kv_heads, 40))  # a batched decode: any slots
    append.check(rng.permutation(np.arange(7 * kv_heads)).reshape(kv_heads, 7))  # neighbours in one word, any order
    append.check(np.arange(kv_heads)[:, None] * page_size)  # one token


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "rotary_dim", "page_size", "dtype"), _SHAPES)
def test_rope_append_keeps_the_newest_queries(isa_target, heads, kv_heads, head_dim, rotary_dim, page_size, dtype):
    append = _Append(isa_target, heads, kv_heads, head_dim, rotary_dim, page_size, dtype, window=True)
    slots = np.arange(kv_heads * 192).reshape(kv_heads, 192)
    newest = np.full(100, -1)
    newest[-32:] = 64 + np.arange(95, 127) % 32  # the ring of the third sequence, from its last row on
    append.check(slots[:, :100], newest)
    append.check(slots[:, :100], np.full(100, -1))
    append.check(slots[:, [5, 70, 131]], np.array([37, -1, 0]))  # a batched decode


def test_runs_of_different_sequences_are_not_merged(isa_target):
    """Slots whose first and last match a run of consecutive entries, but not those between."""
    append = _Append(isa_target, 1, 1, 64, 64, 64, "bfloat16")
    slots = np.arange(16)
    slots[1:15] = slots[14:0:-1]
    append.check(slots[None])
