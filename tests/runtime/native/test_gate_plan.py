"""What a cache plans for a sparse prefill, one promise a test. Random mixtures are in test_gate_random.py."""

import numpy as np
import pytest
from cache_sizes import HEAD_DIM, HEADS, KV_HEADS, LAYERS, WINDOW
from native_cache import NativeCache
from native_gate import NativeGate
from tvm_ffi import Shape

SIZE, BLOCK = 64, 8  # of a segment, of a block


def gate_cache(libraries, policy="", max_total=4096, prefill_chunk=1024, segment_size=SIZE, base_budget=64):
    fixed = f"prefill=entropy;segment_size={segment_size};threshold_len=128;base_budget={base_budget}"
    policy = f"{fixed};{policy}".rstrip(";")
    return NativeGate(libraries["float32"], 4, max_total, prefill_chunk, 16, block_size=BLOCK, policy=policy)


@pytest.fixture
def cache(libraries):
    return gate_cache(libraries)


def step(cache, seqs, lengths, value=None, tree=None):
    """A step with a gate; ``value``: what the kernels write for its first segment, one more for each later one."""
    cache.begin(seqs, lengths, tree)
    segments = cache.gate()[0].tolist()
    if value is not None:
        cache.layer_gate(1)[1][len(seqs) :] = np.arange(value, value + len(segments)).reshape(-1, 1, 1)
    cache.end()
    return segments


def dense_step(cache, seqs, lengths):
    cache.begin(seqs, lengths)
    cache.end()


def values(cache, seq):
    """Of each segment, what the kernels wrote for it, None where nothing was observed."""
    gates = cache.gates(seq)
    assert np.isnan(gates[0]).all()  # layer 0 is skipped
    numbers = [rows.reshape(-1).tolist() for rows in gates[1]]
    assert all(n == [n[0]] * len(n) or np.isnan(n).all() for n in numbers)
    return [None if np.isnan(n[0]) else n[0] for n in numbers]


@pytest.mark.parametrize("cut", range(1, 5 * SIZE))
def test_a_segment_is_observed_by_the_step_that_holds_all_of_it(libraries, cut):
    cache = gate_cache(libraries)
    cache.add(1)
    first, second = step(cache, [1], [cut], value=0), step(cache, [1], [5 * SIZE - cut], value=100)
    whole = [s for s in range(1, 5) if not s * SIZE < cut < (s + 1) * SIZE]
    assert [s for _, _, s, _, _ in first + second] == whole
    assert all(row + done == s * SIZE for done, table in ((0, first), (cut, second)) for _, row, s, _, _ in table)
    assert [gated for *_, gated in first + second] == [int(s * SIZE >= 128) for s in whole]
    assert [previous for *_, previous, _ in first] == list(range(len(first)))
    assert [previous for *_, previous, _ in second] == list(range(len(second)))
    written = {row[2]: i for i, row in enumerate(first)} | {row[2]: 100 + i for i, row in enumerate(second)}
    assert values(cache, 1) == [written.get(s) for s in range(5)]


def test_tables_of_a_ragged_batch(cache):
    for seq in range(3):
        cache.add(seq)
    step(cache, [2], [100])
    cache.begin([0, 1, 2], [260, 30, 100])
    segments, tiles, ranges, scores, counts, lists = cache.gate()
    assert segments.tolist() == [[0, 64, 1, 0, 0], [0, 128, 2, 3, 1], [0, 192, 3, 4, 1], [2, 28, 2, 2, 1]]
    assert sorted(tiles.tolist()) == [
        [0, 0, 64, -1], [0, 64, 64, -1], [0, 128, 64, 1], [0, 192, 64, 2], [0, 256, 4, -1],
        [1, 0, 30, -1],
        [2, 0, 28, -1], [2, 28, 64, 3], [2, 92, 8, -1],
    ]  # fmt: skip
    assert ranges.tolist() == [[0, 33], [0, 4], [12, 25]]
    assert scores.shape == lists.shape == (4, KV_HEADS, 3 * SIZE // BLOCK) and counts.shape == (4, KV_HEADS)
    assert [t.dtype for t in (scores, counts, lists)] == [np.float32, np.int32, np.int32]
    representatives, gates, parameters = cache.layer_gate(1)
    assert representatives.shape == (cache.num_head_pages(), HEAD_DIM, 16, 1) and gates.shape == (3 + 4, KV_HEADS, 4)
    np.testing.assert_array_equal(parameters, np.float32([64, 1e-5, 0.4, 0.5, 3, 0, 0, 0]))


def test_the_tables_of_a_segmentless_step_are_empty(cache):
    cache.add(1)
    cache.begin([1], [1])
    segments, tiles, ranges, scores, counts, lists = cache.gate()
    assert [t.shape for t in (segments, scores, counts, lists)] == [(0, 5), (0, 2, 1), (0, 2), (0, 2, 1)]
    assert tiles.tolist() == [[0, 0, 1, -1]] and ranges.tolist() == [[0, 1]]
    np.testing.assert_array_equal(cache.layer_gate(1)[1], np.float32([[[-1, 64, 0, 1]] * KV_HEADS]))


def test_gated_tiles_end_with_their_segment(libraries):
    cache = gate_cache(libraries, segment_size=128)
    cache.add(1)
    dense_step(cache, [1], [100])
    cache.begin([1], [400])  # positions 100 .. 499: segments 1 and 2 are whole, only 3 * 128 - 100 = 284 rows
    assert sorted(cache.gate()[1].tolist()) == [
        [0, 0, 28, -1], [0, 28, 64, 0], [0, 92, 64, 0], [0, 156, 64, 1], [0, 220, 64, 1], [0, 284, 64, -1],
        [0, 348, 52, -1],
    ]  # fmt: skip


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize(
    "history, lengths",
    [
        ([8192], [2048]),
        ([0], [2048]),
        ([0, 8192], [1024, 1024]),
        ([1024, 8192], [448, 512]),
    ],
)
def test_contiguous_parts_of_the_gated_tiles_cost_about_the_same(libraries, history, lengths, parts):
    policy = "prefill=entropy;segment_size=512;threshold_len=1024;base_budget=256"
    cache = NativeGate(libraries["float32"], 4, 16384, 8192, 16, block_size=BLOCK, policy=policy)
    for seq, past in enumerate(history):
        cache.add(seq)
        if past:
            dense_step(cache, [seq], [past])
    cache.begin(list(range(len(history))), lengths)
    segments, tiles = cache.gate()[:2]
    costs = []
    for b, first, count, segment in tiles.tolist():
        entries = history[b] + np.arange(first, first + count) + 1
        if segment != -1:  # 256 chosen entries in place of all before the segment
            entries += 256 - segments[segment][2] * 512
        costs.append(float(entries.sum()))
    part = -(-len(costs) // parts)
    work = [sum(costs[i : i + part]) for i in range(0, len(costs), part)]
    assert max(work) <= sum(costs) / parts + np.mean(costs) / 4


def test_decode_leaves_representatives_for_the_next_gate(cache):
    cache.add(1)
    step(cache, [1], [100])
    for _ in range(30):
        dense_step(cache, [1], [1])
    cache.begin([1], [1])
    assert cache.gate()[2].tolist() == [[100 // BLOCK, 17]]
    cache.end()
    cache.pop(1, 11)
    cache.begin([1], [9])
    assert cache.gate()[2].tolist() == [[120 // BLOCK, 17]]


def test_a_token_tree_is_not_observed(cache):
    cache.add(1)
    assert step(cache, [1], [64]) == []
    assert step(cache, [1], [64], tree=list(range(-1, 63))) == []
    cache.commit([1], [9])
    cache.begin([1], [55])
    segments, tiles, ranges, *_ = cache.gate()
    assert segments.tolist() == [] and tiles.tolist() == [[0, 0, 55, -1]] and ranges.tolist() == [[9, 17]]


def test_popping_and_forking_take_the_observations_of_what_stays(cache):
    cache.add(1)
    step(cache, [1], [256], value=10)  # 10, 11, 12 for segments 1, 2, 3
    cache.fork(1, 2, 255)
    cache.fork(1, 3, -1)
    assert [values(cache, seq) for seq in (1, 2, 3)] == [[None, 10, 11, 12], [None, 10, 11, None], [None, 10, 11, 12]]
    cache.pop(1, 128)
    step(cache, [2], [65], value=20)  # positions 255 .. 319: segment 4
    assert [values(cache, seq) for seq in (1, 2, 3)] == [[None, 10], [None, 10, 11, None, 20], [None, 10, 11, 12]]
    cache.begin([3, 2, 1], [1, 1, 65])
    assert cache.gate()[0].tolist() == [[2, 0, 2, 2, 1]]
    assert cache.layer_gate(1)[1][:3, 0, 0].tolist() == [12, 20, 10]
    cache.end()
    cache.remove(1)
    cache.add(1)
    assert values(cache, 1) == []


@pytest.mark.parametrize("writer", [1, 2])
def test_a_copied_page_brings_its_representatives(cache, writer):
    keys = np.random.default_rng(0).standard_normal((LAYERS, 100, KV_HEADS, HEAD_DIM)).astype(np.float32)
    cache.add(1)
    cache.begin([1], [100])
    cache.append(keys, keys)
    cache.compute_representatives(1, 1, cache.gate()[2])
    cache.end()
    cache.fork(1, 2, 90)
    blocks = keys[1, :88].reshape(88 // BLOCK, BLOCK, KV_HEADS, HEAD_DIM).transpose(2, 0, 1, 3)
    dense_step(cache, [writer], [1])
    cache.begin([1, 2], [1, 1])
    for b in range(2):
        maxima, minima = cache.representatives(1, b, 88 // BLOCK)
        np.testing.assert_array_equal(maxima, blocks.max(axis=2))
        np.testing.assert_array_equal(minima, blocks.min(axis=2))


def test_a_compressed_sequence_is_observed_no_more(compressing_libraries):
    cache = gate_cache(compressing_libraries, f"decode=streaming;decode_gap=0;slack=0;capacity=128;window={WINDOW}")
    for seq in (1, 2):
        cache.add(seq)
        step(cache, [seq], [256], value=10 * seq)
    cache.may_shrink(1)
    dense_step(cache, [1], [1])
    assert cache.exported("kv_cache_exact_from")(cache.handle, 1) > 0
    cache.begin([1, 2], [200, 100])
    segments, tiles, ranges, *_ = cache.gate()
    assert segments.tolist() == [[1, 0, 4, 1, 1]] and ranges.tolist() == [[0, 0], [32, 45]]
    assert [tile for tile in sorted(tiles.tolist()) if tile[0] == 0] == [
        [0, 0, 64, -1], [0, 64, 64, -1], [0, 128, 64, -1], [0, 192, 8, -1],
    ]  # fmt: skip
    assert cache.layer_gate(1)[1][:2, 0, 0].tolist() == [12, 22]
    cache.layer_gate(1)[1][2] = 23
    cache.end()
    assert values(cache, 1) == [None, 10, 11, 12, *[None] * 4] and values(cache, 2) == [None, 20, 21, 22, 23, None]


def test_configure_changes_the_next_plan(cache):
    cache.add(1)
    cache.configure(
        "threshold_len=192;base_budget=32;entropy_threshold=0.5;delta_t=0.25;alpha=2;max_budget_factor=1.5;"
        "keep_first=16;keep_recent=24"
    )
    cache.begin([1], [256])
    segments = cache.gate()[0]
    assert [gated for *_, gated in segments.tolist()] == [0, 0, 1]
    _, gates, parameters = cache.layer_gate(1)
    assert parameters.tolist() == [40, 0.5, 0.25, 2, 1.5, 2, 3, 0]  # no less than what is always chosen
    assert gates[0].tolist() == [[-1, 40, 0, 1]] * KV_HEADS


@pytest.mark.parametrize("factors, budgets", [("2,0.5", [200, 50]), ("3,0.01,5", [300, BLOCK]), ("0.75", [75, 75])])
def test_layer_budgets_are_stretched_over_the_layers(libraries, factors, budgets):
    cache = gate_cache(libraries, f"layer_skip=0;layer_budgets={factors}", base_budget=100)
    cache.add(1)
    cache.begin([1], [100])
    cache.gate()
    assert [cache.layer_gate(layer)[2][0] for layer in range(LAYERS)] == budgets
    assert [cache.layer_gate(layer)[1][0, 0, 1] for layer in range(LAYERS)] == budgets


def test_answers_are_made_once_a_step_in_aligned_memory_that_stays(cache):
    gate, layer_gate = cache.exported("kv_cache_gate"), cache.exported("kv_cache_layer_gate")
    addresses = []
    for _ in range(2):
        cache.add(1)
        cache.begin([1], [1000])
        assert gate(cache.handle).same_as(gate(cache.handle))
        assert layer_gate(cache.handle, 1).same_as(layer_gate(cache.handle, 1))
        tensors = [*gate(cache.handle), *layer_gate(cache.handle, 1)]
        addresses.append([t.data_ptr() for t in tensors])
        assert all(address % 64 == 0 for address in addresses[-1])
        cache.end()
        cache.remove(1)
    assert addresses[0] == addresses[1]


BAD_CALLS = {
    "gate without begin": (lambda c: c.gate(), "kv_cache_gate needs an open step"),
    "layer without begin": (lambda c: c.layer_gate(1), "kv_cache_gate needs an open step"),
    "skipped layer": (lambda c: (c.begin([1], [1]), c.layer_gate(0)), "Layer 0 is dense: the prefill policy skips 1"),
    "no such layer": (lambda c: (c.begin([1], [1]), c.layer_gate(LAYERS)), f"no layer {LAYERS}"),
    "unknown sequence": (lambda c: c.gates(9), "Sequence 9 is not"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors(cache, name):
    call, message = BAD_CALLS[name]
    cache.add(1)
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(cache)


def test_a_dense_library_has_no_gate(libraries):
    cache = NativeCache(libraries["float32"], "float32")
    cache.add(1)
    cache.begin([1], [100])
    with pytest.raises(RuntimeError, match="does not support a sparse prefill: it was compiled for a dense one"):
        cache.exported("kv_cache_gate")(cache.handle)
    gates = cache.exported("kv_cache_gates")(cache.handle, 1).numpy()
    assert gates.shape == (LAYERS, 1, KV_HEADS, 4) and np.isnan(gates).all()


def test_blocks_that_do_not_fill_a_page_are_refused(libraries):
    create = NativeCache(libraries["float32"], "float32").create
    model = Shape((LAYERS, HEADS, KV_HEADS, HEAD_DIM, 32))
    with pytest.raises(ValueError, match="block_size 64 of the KV cache policy does not divide its page of 32"):
        create(Shape((4, 512, 256, 16, 0)), model, "float32", "prefill=entropy;block_size=64")
