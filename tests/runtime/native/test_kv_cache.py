"""What the KV cache promises, one promise a test. Random mixtures are in test_kv_cache_random.py."""

import os

import numpy as np
import pytest
import tvm
from cache_sizes import HEAD_DIM, KV_HEADS, LAYERS, PAGE
from native_cache import NativeCache
from tvm_ffi import Shape


def random_kv(n, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((LAYERS, n, KV_HEADS, HEAD_DIM)).astype(dtype) for _ in range(2))


@pytest.fixture(params=["float32", "bfloat16"])
def cache(libraries, request):
    return NativeCache(libraries[request.param], request.param)


@pytest.mark.parametrize("writers", [["parent", "child"], ["child", "parent"]])
@pytest.mark.parametrize("position", [-1, 70, 64, 1])
def test_fork_isolates_both_sides(cache, position, writers):
    ids = {"parent": 5, "child": 6}
    common = random_kv(100, cache.dtype)
    cache.add(5)
    cache.forward([5], [100], *common)
    full = cache.available_pages
    cache.fork(5, 6, position)
    forked_at = 100 if position == -1 else position
    written = {name: random_kv(30, cache.dtype, seed) for seed, name in enumerate(writers, 1)}
    for name in writers:
        cache.forward([ids[name]], [30], *written[name])
    for name, begin in (("parent", 100), ("child", forked_at)):
        for got, old, new in zip(cache.contents(ids[name], 0, begin + 30), common, written[name]):
            np.testing.assert_array_equal(got, np.concatenate([old[:, :begin], new], axis=1))
    cache.remove(6)
    cache.pop(5, 30)
    assert cache.available_pages == full


def test_fork_shares_pages_until_someone_writes(cache):
    cache.add(0)
    cache.forward([0], [128], *random_kv(128, cache.dtype))
    before = cache.available_pages
    cache.fork(0, 1, -1)
    cache.fork(0, 2, 64)
    assert cache.available_pages == before
    cache.forward([1], [1], *random_kv(1, cache.dtype))
    assert cache.available_pages == before - PAGE // 16


def test_more_sequences_than_the_batch(libraries):
    cache = NativeCache(libraries["float32"], "float32", max_batch=4, max_total=2048)
    for seq in range(20):
        cache.add(seq)
    cache.forward(list(range(20)), [1] * 20, *random_kv(20, cache.dtype))
    assert cache.total_length == 20
    cache.clear()
    assert cache.empty and cache.total_length == 0


BAD_CALLS = {
    "add twice": (lambda c: c.add(1), "Sequence 1 is already"),
    "remove unknown": (lambda c: c.remove(9), "Sequence 9 is not"),
    "pop unknown": (lambda c: c.pop(9, 1), "Sequence 9 is not"),
    "pop too much": (lambda c: c.pop(1, 71), "pop 71 tokens of sequence 1: it has 70"),
    "pop negative": (lambda c: c.pop(1, -1), "Cannot pop -1"),
    "fork unknown": (lambda c: c.fork(9, 10), "Sequence 9 is not"),
    "fork onto existing": (lambda c: c.fork(1, 2), "Sequence 2 is already"),
    "fork past end": (lambda c: c.fork(1, 3, 71), "at position 71: it has 70"),
    "fork negative": (lambda c: c.fork(1, 3, -2), "at position -2"),
    "step of nothing": (lambda c: c.begin([], []), "0 sequences"),
    "step lengths": (lambda c: c.begin([1, 2], [1]), "2 sequences and 1 append lengths"),
    "step twice the same": (lambda c: c.begin([1, 1], [1, 1]), "Sequence 1 is given twice"),
    "step unknown": (lambda c: c.begin([1, 9], [1, 1]), "Sequence 9 is not"),
    "step of no tokens": (lambda c: c.begin([1, 2], [1, 0]), "0 tokens for sequence 2"),
    "step past chunk": (lambda c: c.begin([1, 2], [200, 57]), "prefill chunk of 256"),
    "step overflow": (lambda c: c.begin([1, 2], [1, 2**63 - 1]), "prefill chunk of 256"),
    "real tree": (lambda c: c.begin([1], [3], [-1, 0, 0]), "not chains"),
    "tree size": (lambda c: c.begin([1], [3], [-1, 0]), "2 nodes for a step of 3"),
    "commit without tree": (lambda c: c.commit([1], [0]), "0 uncommitted"),
    "commit lengths": (lambda c: c.commit([1, 2], [-1]), "1 leaves to 2 sequences"),
    "commit unknown": (lambda c: c.commit([9], [-1]), "Sequence 9 is not"),
    "mark unknown": (lambda c: c.may_shrink(9), "Sequence 9 is not"),
    "end without begin": (lambda c: c.end(), "needs an open step"),
    "tables without begin": (lambda c: c.step_tables(), "needs an open step"),
    "layer without begin": (lambda c: c.layer_tables(0), "needs an open step"),
    "positions without begin": (lambda c: c.builtin("attention_kv_cache_get_query_positions"), "needs an open step"),
    "read past end": (lambda c: c.contents(1, 60, 71), "Entries 60 to 71 are not in sequence 1"),
    "read backwards": (lambda c: c.contents(1, 60, 60), "Entries 60 to 60"),
    "read unknown": (lambda c: c.contents(9, 0, 1), "Sequence 9 is not"),
    "read wrong shape": (
        lambda c: c.builtin("attention_kv_cache_debug_get_kv", 1, 0, 2, *[tvm.runtime.tensor(np.zeros((1, 2)))] * 2),
        rf"compact CPU tensors of shape \[{LAYERS}, 2, {KV_HEADS}, {HEAD_DIM}\]",
    ),
    "attention": (
        lambda c: c.builtin(
            "attention_kv_cache_attention_with_fused_qkv", 0, 1.0, *[tvm.runtime.tensor(np.zeros((1, 2)))] * 2
        ),
        "does not support attention calls",
    ),
    "disaggregation": (lambda c: c.builtin("kv_cache_disagg_prepare_recv", 1, 5), "does not support disaggregation"),
    "MLA": (
        lambda c: c.builtin("attention_kv_cache_debug_get_kv_mla", 1, 0, 1, tvm.runtime.tensor(np.zeros((1, 2)))),
        "does not support MLA",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_leave_the_cache_as_it_was(cache, name):
    call, message = BAD_CALLS[name]
    k, v = random_kv(80, cache.dtype)
    cache.add(1)
    cache.add(2)
    cache.forward([1, 2], [70, 10], k, v)
    sizes = cache.available_pages, cache.total_length
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(cache)
    assert (cache.available_pages, cache.total_length) == sizes
    for seq, begin, end in ((1, 0, 70), (2, 70, 80)):
        for got, want in zip(cache.contents(seq, 0, end - begin), (k, v)):
            np.testing.assert_array_equal(got, want[:, begin:end])
    cache.forward([2, 1], [1, 1], *random_kv(2, cache.dtype))


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.begin([1], [1]),
        lambda c: c.pop(1, 1),
        lambda c: c.remove(1),
        lambda c: c.fork(1, 2),
        lambda c: c.commit([1], [-1]),
    ],
)
def test_an_open_step_must_be_ended_first(cache, call):
    cache.add(1)
    cache.begin([1], [3])
    with pytest.raises(RuntimeError, match="end the step first"):
        call(cache)
    assert cache.step_tables()[0].tolist() == [0, 1, 2]
    cache.end()
    cache.pop(1, 3)
    assert cache.total_length == 0


def test_full_cache_names_used_and_total(cache):
    cache.add(1)
    cache.add(2)
    for seq in (1, 1, 1, 2):
        cache.forward([seq], [256], *random_kv(256, cache.dtype))
    with pytest.raises(RuntimeError, match="full: 16 of 16 pages of 64 entries are in use .* 130 tokens needs 4 more"):
        cache.begin([2, 1], [65, 65])
    assert cache.available_pages == 0


@pytest.mark.parametrize("page_size", [16, 32, 48, 64, 128])
def test_an_engine_that_trusts_available_pages_never_runs_out(libraries, page_size):
    max_batch, rng = 6, np.random.default_rng(page_size)
    cache = NativeCache(libraries["float32"], "float32", max_batch, 2000, 700, page_size)
    assert cache.available_pages >= 2000 // page_size + 1
    steps = 0
    for _ in range(30):
        cache.clear()
        for seq in range(12):
            cache.add(seq)
        while cache.available_pages > 0:
            batch = rng.choice(12, size=rng.integers(1, max_batch + 1), replace=False)
            pages_left, seqs, lengths = cache.available_pages, [], []
            for seq in batch.tolist():
                pages = int(rng.choice([1, 2, rng.integers(1, 9)]))
                if pages <= pages_left and sum(lengths) + pages * page_size <= 700:
                    pages_left -= pages
                    seqs.append(seq)
                    lengths.append(int(pages * page_size - rng.integers(0, page_size)))
            if not seqs:
                break
            cache.begin(seqs, lengths)
            cache.end()
            steps += 1
            if rng.integers(4) == 0 and 99 not in seqs:
                cache.remove(11)
                cache.fork(seqs[0], 11) if seqs[0] != 11 else cache.add(11)
    assert steps > 100


def test_a_chain_is_committed_up_to_its_leaf(cache):
    k, v = random_kv(14, cache.dtype)
    cache.add(1)
    cache.add(2)
    cache.forward([1, 2], [5, 1], k[:, :6], v[:, :6])
    cache.forward([1, 2], [3, 2], k[:, 6:11], v[:, 6:11], tree=[-1, 0, 1, -1, 0])
    with pytest.raises(RuntimeError, match="Cannot fork sequence 2: its token tree is not committed"):
        cache.fork(2, 3)
    with pytest.raises(RuntimeError, match="token tree of sequence 2 is not committed"):
        cache.begin([2], [1])
    cache.forward([1], [1], k[:, 11:12], v[:, 11:12], tree=[2])
    cache.commit([1, 2], [2, -1])
    assert cache.total_length == 5 + 3 + 1
    np.testing.assert_array_equal(cache.contents(1, 0, 8)[0], np.concatenate([k[:, :5], k[:, 6:9]], axis=1))
    np.testing.assert_array_equal(cache.contents(2, 0, 1)[1], v[:, 5:6])
    cache.begin([1, 2], [1, 1])
    assert cache.builtin("attention_kv_cache_get_query_positions").numpy().tolist() == [8, 1]


def test_tables_are_aligned_and_their_memory_is_reused(cache):
    cache.add(1)
    addresses = []
    for n in (200, 100, 1):
        cache.begin([1], [n])
        layers = [list(cache.exported("kv_cache_layer")(cache.handle, layer))[2:] for layer in range(LAYERS)]
        tables = [*cache.exported("kv_cache_step")(cache.handle), *layers[0]]
        addresses.append([t.data_ptr() for t in tables])
        assert all(address % 64 == 0 for address in addresses[-1])
        assert [t.data_ptr() for t in layers[0]] == [t.data_ptr() for t in layers[1]]
        cache.end()
    # One block after the other, always from the same place on.
    assert addresses[0][0] == addresses[1][0] == addresses[2][0] == min(map(min, addresses))


def test_layer_answers_are_made_once_a_step(cache):
    layer = cache.exported("kv_cache_layer")
    cache.add(1)
    cache.begin([1], [1])
    assert layer(cache.handle, 0).same_as(layer(cache.handle, 0))
    with pytest.raises(ValueError, match=f"{LAYERS} layers and no layer {LAYERS}"):
        layer(cache.handle, LAYERS)


def test_a_large_cache_costs_nothing_until_used(libraries):
    def resident():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    cache = NativeCache(libraries["float32"], "float32", 4, 8 << 20)
    cache.add(1)
    cache.forward([1], [256], *random_kv(256, np.float32))
    assert resident() - before < 16 << 20


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((0, 512, 256, 16), "max_batch must be positive"),
        ((4, -1, 256, 16), "max_total_seq_len must be positive"),
        ((4, 512, 256, 2**40), "page_size must be positive and fit"),
        ((4, 2**31 - 1, 256, 16), "too large for 32 bit"),
    ],
)
def test_bad_sizes_are_refused(libraries, sizes, message):
    with pytest.raises(ValueError, match=message):
        NativeCache(libraries["float32"], "float32", *sizes)


def test_a_cache_of_another_library_is_refused(libraries):
    ours, theirs = (NativeCache(libraries[dtype], dtype) for dtype in ("float32", "bfloat16"))
    for cache in (ours, theirs):
        cache.add(1)
        cache.begin([1], [3])
        assert cache.step_tables()[0].tolist() == [0, 1, 2]
    for stranger in (theirs.handle, Shape([1]), None):
        with pytest.raises(TypeError, match="is not a KV cache of this model library"):
            ours.exported("kv_cache_layer")(stranger, 0)
