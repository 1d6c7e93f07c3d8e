"""One run of a rope_append over pages that hold other entries, against float64 numpy.

A product and the sum round once at 2**-24 relative to |x| + |y| <= 12 (normal deviates), hence 4e-6; a 16-bit result is
rounded.
"""

from collections.abc import Iterator

import numpy as np
from paged_cache import NUMPY_DTYPE, PAIR, ROUNDOFF, pack_keys, pack_values, unpack_keys, unpack_values


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x [n, heads, d], cos and sin [n, rotary_dim / 2], all float64."""
    half = cos.shape[1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


class Append:
    """``run`` is a rope_append as a function of numpy arrays, which it updates in place."""

    def __init__(self, run, heads, kv_heads, head_dim, rotary_dim, page_size, dtype):
        self.run = run
        self.heads, self.kv_heads, self.d, self.rotary = heads, kv_heads, head_dim, rotary_dim
        self.page, self.dtype = page_size, dtype

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
        k_pages, v_pages = (pool.copy() for pool in before)
        q_out = np.zeros((n, self.heads, self.d), dtype)
        table, slots32 = np.concatenate([cos, sin], axis=1), slots.astype(np.int32)
        if query_slots is None:
            self.run(qkv, table, slots32, k_pages, v_pages, q_out)
        else:
            old_observed = rng.standard_normal((query_slots.max(initial=0) + 3, self.heads, self.d)).astype(dtype)
            observed = old_observed.copy()
            self.run(qkv, table, slots32, query_slots.astype(np.int32), k_pages, v_pages, observed, q_out)
            old_observed[query_slots[query_slots >= 0]] = q_out[query_slots >= 0]
            np.testing.assert_array_equal(observed, old_observed)

        q, k, v = np.split(qkv.astype(np.float64), [self.heads, self.heads + self.kv_heads], axis=1)
        q, k = (rotate(x, cos.astype(np.float64), sin.astype(np.float64)) for x in (q, k))
        np.testing.assert_allclose(q_out.astype(np.float64), q, rtol=self.relative, atol=4e-6)
        self.check_pools(before, (k_pages, v_pages), slots, k, v)

    @property
    def relative(self) -> float:
        return ROUNDOFF[self.dtype]

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


def slots_of_steps(kv_heads: int, page_size: int) -> Iterator[np.ndarray]:
    """append_slots [G, n] of very different steps."""
    rng = np.random.default_rng(2)

    def sequence(start: int, length: int) -> np.ndarray:
        """Slots of ``length`` new entries after ``start`` old ones, in shuffled pages of its own for each head."""
        offsets = start + np.arange(length)
        pages = rng.permutation(kv_heads * (offsets[-1] // page_size + 1)).reshape(kv_heads, -1)
        return pages[:, offsets // page_size] * page_size + offsets % page_size

    yield sequence(0, 130)  # aligned runs and a tail
    yield sequence(5, 100)  # odd start: the words of v_pages are shared between runs
    yield sequence(2, 70)  # even, not a multiple of the vector width
    yield rng.permutation(300)[: kv_heads * 40].reshape(kv_heads, 40)  # a batched decode: any slots
    yield rng.permutation(np.arange(7 * kv_heads)).reshape(kv_heads, 7)  # neighbours in one word, any order
    yield np.arange(kv_heads)[:, None] * page_size  # one token


def check_newest_queries(append: Append) -> None:
    """For a kernel with ``window``."""
    slots = np.arange(append.kv_heads * 192).reshape(append.kv_heads, 192)
    newest = np.full(100, -1)
    newest[-32:] = 64 + np.arange(95, 127) % 32  # the ring of the third sequence, from its last row on
    append.check(slots[:, :100], newest)
    append.check(slots[:, :100], np.full(100, -1))
    append.check(slots[:, [5, 70, 131]], np.array([37, -1, 0]))  # a batched decode
