"""kv_compact on a GPU: every entry of the pools afterwards, whatever the order of the threads."""

import numpy as np
import pytest
from gpu import emulated_cuda
from paged_cache import page_table, random_cache, unpack_keys, unpack_values

from tir_kernels.gpu.compact import compact
from tir_kernels.gpu.features import gpu_features

_SHAPES = [
    pytest.param(2, 64, 64, "float16", id="d64-f16"),
    pytest.param(3, 80, 16, "bfloat16", id="d80-page16-bf16"),
    pytest.param(2, 96, 64, "float32", id="d96-f32"),
]
_NOWHERE = np.iinfo(np.int32).max


def _check(kernel, cache, kept: list[np.ndarray], in_place: bool) -> None:
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
    for found_pool, expected_pool in zip(found, expected):
        np.testing.assert_array_equal(found_pool.astype(np.float32), expected_pool.astype(np.float32))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(("kv_heads", "head_dim", "page_size", "dtype"), _SHAPES)
def test_compact(kv_heads, head_dim, page_size, dtype, in_place):
    rng = np.random.default_rng(0)
    kernel = emulated_cuda.compile(compact(kv_heads, head_dim, page_size, dtype, gpu_features(emulated_cuda.target())))
    for length, order in ((1, "forward"), (63, "backward"), (64, 3), (65, 4), (700, "backward")):
        lengths = [length + 9 * h for h in range(kv_heads)]
        cache = random_cache(rng, [[n] for n in lengths], head_dim, page_size, dtype)
        for share in (0.1, 0.5, 1.0):
            kept = [np.sort(rng.permutation(n)[: max(1, int(share * n) - h)]) for h, n in enumerate(lengths)]
            with emulated_cuda.thread_order(order):
                _check(kernel, cache, kept, in_place)


def test_a_head_that_keeps_nothing_is_left_alone():
    rng = np.random.default_rng(1)
    kernel = emulated_cuda.compile(compact(2, 64, 64, "float16", gpu_features(emulated_cuda.target())))
    cache = random_cache(rng, [[100], [200]], 64, 64, "float16")
    _check(kernel, cache, [np.arange(0), np.arange(3, 200, 2)], in_place=True)
