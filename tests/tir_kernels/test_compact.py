"""kv_compact: every entry of the pools afterwards, and attention over what it leaves."""

from dataclasses import replace

import int8_entries
import numpy as np
import pytest
import tvm
from compiled import compiled, run
from paged_cache import (
    NUMPY_DTYPE,
    PagedCache,
    page_table,
    query_tiles,
    random_cache,
    reference_attention,
    unpack_keys,
    unpack_values,
)

from tir_kernels.cpu.attention_decode import attention_decode
from tir_kernels.cpu.compact import compact

_SHAPES = [
    pytest.param(14, 2, 64, 64, "bfloat16", id="g7-d64-bf16"),
    pytest.param(3, 3, 80, 16, "bfloat16", id="g1-d80-page16-bf16"),
    pytest.param(6, 2, 96, 64, "float32", id="g3-d96-f32"),
]
_LENGTHS = (1, 63, 64, 65, 1000, 2500)


def _compacted(kernel, cache: PagedCache, kept: list[np.ndarray], in_place: bool) -> PagedCache:
    """Run the kernel, check every entry of both pools, and return the cache of the kept entries."""
    page_size, pair = cache.k_pages.shape[2:]
    counts = np.array([len(entries) for entries in kept], np.int32)
    source_pages = page_table(cache)
    pages_needed = -(-counts // page_size)
    k_pages, v_pages, target_pages = cache.k_pages, cache.v_pages, source_pages
    if not in_place:  # pages after all others, in reverse order, full of NaN
        spare = np.full((pages_needed.sum(), *k_pages.shape[1:]), np.nan, k_pages.dtype)
        target_pages = np.full((len(kept), pages_needed.max() + 1), np.iinfo(np.int32).max, np.int32)
        free = list(range(len(k_pages), len(k_pages) + len(spare)))
        for row, needed in zip(target_pages, pages_needed):
            row[:needed] = [free.pop() for _ in range(needed)]
        k_pages = np.concatenate([k_pages, spare])
        v_pages = np.concatenate([v_pages, spare.reshape(len(spare), *v_pages.shape[1:])])
    lists = np.full((len(kept), counts.max(initial=0) + 1), np.iinfo(np.int32).max, np.int32)
    for row, entries in zip(lists, kept):
        row[: len(entries)] = entries

    pools = tvm.runtime.tensor(k_pages), tvm.runtime.tensor(v_pages)
    kernel(*pools, *(tvm.runtime.tensor(table) for table in (source_pages, target_pages, lists, counts)))

    new_k, new_v = pools[0].numpy(), pools[1].numpy()
    expected_keys, expected_values = unpack_keys(k_pages).copy(), unpack_values(v_pages).copy()
    new_keys, new_values = unpack_keys(new_k), unpack_values(new_v).copy()
    for h, entries in enumerate(kept):
        sources = source_pages[h, entries // page_size], entries % page_size
        places = np.arange(len(entries))
        targets = target_pages[h, places // page_size], places % page_size
        expected_keys[targets] = expected_keys[sources]
        expected_values[targets] = expected_values[sources]
        if len(entries) % pair == 1:  # the other half of the last word of values is free
            unused = target_pages[h, len(entries) // page_size], len(entries) % page_size
            new_values[unused] = expected_values[unused]
    np.testing.assert_array_equal(new_keys.astype(np.float32), expected_keys.astype(np.float32))
    np.testing.assert_array_equal(new_values.astype(np.float32), expected_values.astype(np.float32))

    starts = np.concatenate([[0], np.cumsum(pages_needed)])
    return replace(
        cache,
        keys=[[cache.keys[h][0][entries]] for h, entries in enumerate(kept)],
        values=[[cache.values[h][0][entries]] for h, entries in enumerate(kept)],
        k_pages=new_k,
        v_pages=new_v,
        page_indptr=np.stack([starts[:-1], starts[1:]], axis=1).astype(np.int32),
        page_indices=np.concatenate([row[:needed] for row, needed in zip(target_pages, pages_needed)]),
        kv_lengths=counts[:, None],
    )


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "page_size", "dtype"), _SHAPES)
def test_compact(isa_target, heads, kv_heads, head_dim, page_size, dtype, in_place):
    target, isa = isa_target
    rng = np.random.default_rng(0)
    sm_scale = head_dim**-0.5
    kernel = compiled(compact(kv_heads, head_dim, page_size, dtype, isa), target)
    attention = compiled(attention_decode(heads, kv_heads, head_dim, page_size, dtype, isa, sm_scale, 2), target)
    for length in _LENGTHS:
        lengths = [length + 9 * h for h in range(kv_heads)]
        cache = random_cache(rng, [[n] for n in lengths], head_dim, page_size, dtype)
        for share in (0.1, 0.5, 1.0):
            kept = [np.sort(rng.permutation(n)[: max(1, int(share * n) - h)]) for h, n in enumerate(lengths)]
            after = _compacted(kernel, cache, kept, in_place)
            q = rng.standard_normal((1, heads, head_dim)).astype(NUMPY_DTYPE[dtype])
            out = run(
                attention,
                q,
                after.k_pages,
                after.v_pages,
                np.array([0, 1], np.int32),
                query_tiles([1]),
                after.page_indptr,
                after.page_indices,
                after.kv_lengths,
                shape=q.shape,
                dtype=dtype,
            )
            expected = reference_attention(q, after, [1], sm_scale)
            error = np.abs(out.astype(np.float64) - expected.out)
            bf16_weights = dtype == "bfloat16" and isa.has_bf16_dot
            assert np.all(error <= expected.error_bound(dtype, bf16_weights))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("head_dim", [48, 64])
def test_compact_int8(isa_target, head_dim, in_place):
    """Codes and scales of an entry move together."""
    target, isa = isa_target
    rng = np.random.default_rng(0)
    kernel = compiled(compact(2, head_dim, 64, "bfloat16", isa, "int8"), target)
    cache = random_cache(rng, [[130], [500]], head_dim, 64, "bfloat16", "int8")
    sources = page_table(cache)
    kept = [np.sort(rng.permutation(n)[: n // 2]) for n in (130, 500)]
    counts = np.array([len(entries) for entries in kept], np.int32)
    lists = np.full((2, counts.max()), np.iinfo(np.int32).max, np.int32)
    targets = sources.copy()
    pools = [cache.k_pages, cache.v_pages]
    if not in_place:
        pools = [np.concatenate([pool, np.full((8, *pool.shape[1:]), 7, pool.dtype)]) for pool in pools]
        targets[:, :4] = len(cache.k_pages) + np.arange(8).reshape(2, 4)
    for row, entries in zip(lists, kept):
        row[: len(entries)] = entries
    after = [tvm.runtime.tensor(pool) for pool in pools]
    kernel(*after, *(tvm.runtime.tensor(table) for table in (sources, targets, lists, counts)))
    unpack = (int8_entries.unpack_keys, lambda pool: int8_entries.unpack_values(pool, 64))
    for before, now, of in zip(pools, after, unpack):
        for x, y in zip(of(before), of(now.numpy())):
            for h, entries in enumerate(kept):
                places = np.arange(len(entries))
                expected = x[sources[h, entries // 64], entries % 64]
                np.testing.assert_array_equal(y[targets[h, places // 64], places % 64], expected)


def test_a_head_that_keeps_nothing_is_left_alone(isa_target):
    target, isa = isa_target
    rng = np.random.default_rng(1)
    kernel = compiled(compact(2, 64, 64, "bfloat16", isa), target)
    cache = random_cache(rng, [[100], [200]], 64, 64, "bfloat16")
    _compacted(kernel, cache, [np.arange(0), np.arange(3, 200, 2)], in_place=True)
