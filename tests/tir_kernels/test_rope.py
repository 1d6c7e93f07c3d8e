"""rope_table and rope_append against float64 numpy.

Bounds. Table: the angles are the same float32 products as the oracle's; the kernel promises 1e-6. RoPE: a product and
the sum round once at 2**-24 relative to |x| + |y| <= 12 (normal deviates), hence 4e-6; bfloat16 rounds at 2**-8.
"""

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
        pair, dtype, n = PAIR[self.dtype], NUMPY_DTYPE[self.dtype], slots.shape[1]
        num_pages = int(slots.max()) // self.page + 2
        qkv = rng.standard_normal((n, self.heads + 2 * self.kv_heads, self.d)).astype(dtype)
        angles = rng.uniform(-3, 3, (n, self.rotary // 2))
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        old_keys, old_values = (rng.standard_normal((num_pages, self.page, self.d)).astype(dtype) for _ in range(2))
        k_pages = tvm.runtime.tensor(pack_keys(old_keys, pair))
        v_pages = tvm.runtime.tensor(pack_values(old_values, pair))
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
        keys, values = old_keys.astype(np.float64), old_values.astype(np.float64)
        for h in range(self.kv_heads):
            keys[slots[h] // self.page, slots[h] % self.page] = k[:, h]
            values[slots[h] // self.page, slots[h] % self.page] = v[:, h]
        relative = 2.0**-8 if pair == 2 else 0.0
        np.testing.assert_allclose(q_out.numpy().astype(np.float64), q, rtol=relative, atol=4e-6)
        np.testing.assert_allclose(unpack_keys(k_pages.numpy()).astype(np.float64), keys, rtol=relative, atol=4e-6)
        np.testing.assert_array_equal(unpack_values(v_pages.numpy()).astype(np.float64), values)


_SHAPES = [
    pytest.param(14, 2, 64, 64, 64, "bfloat16", id="qwen-bf16"),
    pytest.param(3, 1, 80, 32, 16, "bfloat16", id="partial-rotary-bf16"),
    pytest.param(4, 4, 96, 96, 64, "float32", id="mha-f32"),
]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "rotary_dim", "page_size", "dtype"), _SHAPES)
def test_rope_append(isa_target, heads, kv_heads, head_dim, rotary_dim, page_size, dtype):
    append = _Append(isa_target, heads, kv_heads, head_dim, rotary_dim, page_size, dtype)
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
