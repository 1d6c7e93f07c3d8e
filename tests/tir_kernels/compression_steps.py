"""The kernels that compress the KV cache on a GPU, run on ragged heads and compared with numpy.

Kernels are functions of numpy arrays and numbers, which update the arrays.
"""

from collections.abc import Callable, Iterable

import compression_oracle
import numpy as np
from paged_cache import NUMPY_DTYPE, PagedCache, page_table, random_cache, unpack_keys, unpack_values

_NOWHERE = np.iinfo(np.int32).max


def check_window_scores(
    kernel: Callable, shape: tuple[int, int, int, int, int, str], steps: Iterable[tuple[int, int]]
) -> None:
    """shape: (heads, kv_heads, head_dim, page_size, window, dtype); steps: (entries, row of the newest query).

    Pages and the ring of queries hold NaN where nothing is.
    """
    heads, kv_heads, head_dim, page_size, window, dtype = shape
    rng = np.random.default_rng(0)
    sm_scale, group = head_dim**-0.5, heads // kv_heads
    for length, newest in steps:
        lengths = [length + 7 * h for h in range(kv_heads)]
        cache = random_cache(rng, [[n] for n in lengths], head_dim, page_size, dtype)
        # Rows of very different temperature: flat ones, and peaked ones whose maximum is raised many times.
        q = rng.standard_normal((window, heads, head_dim)) * rng.uniform(0.1, 10, (window, heads, 1))
        q = q.astype(NUMPY_DTYPE[dtype])
        observed = np.full((3 * window, heads, head_dim), np.nan, q.dtype)
        observed[window + (newest + 1 + np.arange(window)) % window] = q
        scores = np.full((kv_heads, max(lengths) + 13), np.nan, np.float32)
        kernel(observed, window, newest, cache.k_pages, page_table(cache), cache.kv_lengths[:, 0].copy(), scores)

        keys = [cache.keys[h][0] for h in range(kv_heads)]
        for h, expected in enumerate(compression_oracle.window_scores(q, keys, sm_scale)):
            magnitude = (np.abs(q[:, h * group : (h + 1) * group].astype(np.float64)) @ np.abs(keys[h]).T).max()
            # A score is a sum of d products, scaled, less the maximum: numerator and denominator carry its error and
            # that of exp2. Then sums over the entries by thread and over the rows, one rounding after the other.
            logit = (head_dim + 8) * 2.0**-24 * magnitude * sm_scale
            relative = 2 * (logit + 4e-7) + (len(expected) / 4 + len(q) * group) * 2.0**-24
            actual = scores[h].astype(np.float64)
            assert np.all(np.abs(actual[: len(expected)] - expected) <= relative * expected + 1e-37)
            assert np.all(actual[len(expected) :] == 0)


def selected(
    kernel: Callable, scores: list[np.ndarray], capacity, tail, pooling_kernel, use_max, alpha, max_kept=None
) -> list[np.ndarray]:
    """The entries that a select_entries keeps of each head."""
    lengths = np.array([len(s) for s in scores], np.int32)
    padded = np.full((len(scores), lengths.max() + 9), np.nan, np.float32)
    for row, s in zip(padded, scores):
        row[: len(s)] = s
    kept = np.full((len(scores), max_kept or padded.shape[1]), -1, np.int32)
    counts = np.full(len(scores), -1, np.int32)
    options = capacity, tail, pooling_kernel, int(use_max), int(alpha is not None), alpha or 0.0
    kernel(padded, lengths, kept, counts, *options)
    assert np.all(kept[np.arange(kept.shape[1]) >= counts[:, None]] == -1)
    return [row[:count] for row, count in zip(kept, counts)]


def check_selected(kernel: Callable, scores, capacity, tail, pooling_kernel, use_max, alpha) -> None:
    """Scores are multiples of 2**-20 below 2**-3: sums of a pooling kernel are exact in float32, so the sets are equal,
    ties included."""
    found = selected(kernel, scores, capacity, tail, pooling_kernel, use_max, alpha)
    expected = compression_oracle.kept_entries(scores, capacity, tail, pooling_kernel, use_max, alpha)
    for a, e in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, e)


def peaked_scores(rng: np.random.Generator, lengths: Iterable[int]) -> list[np.ndarray]:
    """A power of a uniform deviate: a few large scores, as a softmax gives; heads of different weight."""
    return [
        (np.floor(rng.uniform(0, 1, n) ** 4 * 2**17 / (h + 1)) * 2.0**-20).astype(np.float32)
        for h, n in enumerate(lengths)
    ]


def check_compact(kernel: Callable, cache: PagedCache, kept: list[np.ndarray], in_place: bool) -> None:
    """Every entry of both pools afterwards."""
    page_size = cache.k_pages.shape[2]
    counts = np.array([len(entries) for entries in kept], np.int32)
    sources = page_table(cache)
    pages_needed = -(-counts // page_size)
    k_pages, v_pages, targets = cache.k_pages.copy(), cache.v_pages.copy(), sources
    if not in_place:  # pages after all others, in reverse order, full of NaN
        spare = np.full((pages_needed.sum(), *k_pages.shape[1:]), np.nan, k_pages.dtype)
        targets = np.full((len(kept), pages_needed.max() + 1), _NOWHERE, np.int32)
        free = list(range(len(k_pages), len(k_pages) + len(spare)))
        for row, needed in zip(targets, pages_needed):
            row[:needed] = [free.pop() for _ in range(needed)]
        k_pages = np.concatenate([k_pages, spare])
        v_pages = np.concatenate([v_pages, spare.reshape(len(spare), *v_pages.shape[1:])])
    lists = np.full((len(kept), counts.max(initial=0) + 1), _NOWHERE, np.int32)
    for row, entries in zip(lists, kept):
        row[: len(entries)] = entries
    expected = unpack_keys(k_pages).copy(), unpack_values(v_pages).copy()

    kernel(k_pages, v_pages, sources, targets, lists, counts)

    found = unpack_keys(k_pages), unpack_values(v_pages).copy()
    for h, entries in enumerate(kept):
        places = np.arange(len(entries))
        to = targets[h, places // page_size], places % page_size
        for pool in expected:
            pool[to] = pool[sources[h, entries // page_size], entries % page_size]
    for found_pool, expected_pool in zip(found, expected, strict=True):
        np.testing.assert_array_equal(found_pool.astype(np.float32), expected_pool.astype(np.float32))
