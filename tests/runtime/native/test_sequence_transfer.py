"""Sequences that go to another cache: they go on there as they would have at home, and nothing else is let in."""

import numpy as np
import pytest
from cache_sizes import HEAD_DIM, HEADS, KV_HEADS, LAYERS, PAGE, WINDOW
from native_cache import NativeCache
from native_compression import CompressingCache
from native_gate import NativeGate
from tvm_ffi import from_dlpack

SIZES = (4, 4096, 1024, 16)
PAGE_BYTES = 2 * PAGE * HEAD_DIM * 4  # K and V of one KV head, float32


def compressing(libraries, policy="decode=latent", sizes=SIZES):
    text = f"window={WINDOW};capacity=128;slack=20;{policy}"
    return CompressingCache(libraries["float32"], "float32", *sizes, policy=text)


def step(caches, seq, tokens):
    """The same step of random tokens in every cache. Returns for each what the heads then hold, as kernels find it."""
    rng = np.random.default_rng(tokens + 1000 * seq)
    q, k, v = (
        rng.standard_normal((LAYERS, tokens, n, HEAD_DIM)).astype(np.float32) for n in (HEADS, KV_HEADS, KV_HEADS)
    )
    held = []
    for cache in caches:
        cache.begin([seq], [tokens])
        cache.append(k, v)
        if isinstance(cache, CompressingCache):
            cache.observe(q)
        held.append(cache.read_layers() if len(caches) > 1 else None)
        cache.end()
    return held


def start(cache, seq, tokens, may_shrink=True):
    cache.add(seq)
    if may_shrink:
        cache.may_shrink(seq)
    while tokens:
        step([cache], seq, min(tokens, 200))
        tokens -= min(tokens, 200)


def move(cache, new, seq, pieces=1):
    """The sequence in a cache that held others before, under another id."""
    start(new, 2, 700)
    start(new, 3, 100)
    new.remove(2)
    new.add(seq)
    new.may_shrink(seq)
    new.restore(seq, *cache.save(seq, pieces), pieces)
    return new


def step_the_same(a, b, seq, tokens):
    for got, want in zip(*step([a, b], seq, tokens)):
        for x, y in zip(got, want):
            np.testing.assert_array_equal(x, y)
    assert a.exact_from(seq) == b.exact_from(seq)
    for got, want in zip(a.positions(seq), b.positions(seq)):
        for got_head, want_head in zip(got, want, strict=True):
            np.testing.assert_array_equal(got_head, want_head)


@pytest.mark.parametrize("decode", ["latent;decode_gap=6", "snapkv;decode_gap=-1", "adakv;decode_gap=2", "streaming"])
@pytest.mark.parametrize("generated", [0, 4, 9, 60])
def test_moved_sequence_is_compressed_as_at_home(compressing_libraries, decode, generated):
    home = compressing(compressing_libraries, f"decode={decode}")
    start(home, 1, 430)
    for _ in range(generated):
        step([home], 1, 1)
    away = move(home, compressing(compressing_libraries, f"decode={decode}"), 1, pieces=3)
    held = home.total_length
    for _ in range(40):
        step_the_same(away, home, 1, 1)
    assert home.total_length <= max(held, 250), "never compressed"
    step_the_same(away, home, 1, 90)
    step_the_same(away, home, 1, 1)
    home.remove(1)
    away.remove(1)
    away.remove(3)
    assert away.available_pages == home.available_pages


def test_ragged_heads_go_into_as_few_pages_as_the_fullest_layer_needs(compressing_libraries):
    home = compressing(compressing_libraries, "decode=adakv;decode_gap=0;adaptive_alpha=0")
    start(home, 1, 900)
    step([home], 1, 1)
    away = compressing(compressing_libraries)
    empty = away.available_pages
    away.add(1)
    away.restore(1, *home.save(1))
    cells = max(sum(-(-len(head) // PAGE) for head in layer) for layer in away.positions(1))
    assert empty - away.available_pages == -(-cells // KV_HEADS) * PAGE // 16


def test_a_sequence_without_a_query_slot_still_comes(compressing_libraries):
    """Queries are kept for 1024 sequences. Another one is never compressed by them, and is whole."""
    home, away = compressing(compressing_libraries), compressing(compressing_libraries)
    start(home, 1, 300)
    for seq in range(2000, 2000 + 1024):
        away.add(seq)
    away.add(1)
    away.may_shrink(1)
    away.restore(1, *home.save(1))
    for _ in range(20):
        step([away], 1, 1)
    assert away.total_length == 320
    np.testing.assert_array_equal(away.contents(1, 0, 300), home.contents(1, 0, 300))


def test_forks_of_a_saved_sequence_are_not_written(libraries):
    cache = NativeCache(libraries["float32"], "float32", *SIZES)
    start(cache, 1, 100)
    _, contents = cache.save(1)
    cache.fork(1, 2)
    with pytest.raises(ValueError, match="Cannot write pages of sequence 2: another sequence reads them too"):
        cache._in_pieces("kv_cache_write_pages", 2, contents, 1)


def test_what_is_refused(libraries):
    cache = NativeCache(libraries["float32"], "float32", *SIZES)
    start(cache, 1, 300)
    state, contents = cache.save(1)
    assert contents.shape == (LAYERS * KV_HEADS * 5, PAGE_BYTES)
    with pytest.raises(ValueError, match="Cannot restore sequence 1: it is not empty"):
        cache.restore(1, state, contents)
    with pytest.raises(ValueError, match="Sequence 7 is not in the KV cache"):
        cache.restore(7, state, contents)
    cache.begin([1], [1])
    with pytest.raises(RuntimeError, match="between BeginForward and EndForward"):
        cache.save(1)
    cache.end()
    cache.begin([1], [2], [-1, 0])
    cache.end()
    with pytest.raises(RuntimeError, match="Cannot save sequence 1: its token tree is not committed"):
        cache.save(1)
    small = NativeCache(libraries["float32"], "float32", 1, 128, 256, 16)
    free = small.available_pages
    small.add(1)
    with pytest.raises(RuntimeError, match="The KV cache is full: the saved sequence needs 5 pages"):
        small.restore(1, state, contents)
    assert small.available_pages == free and small.total_length == 0
    for first, buffer in [
        (0, np.zeros(PAGE_BYTES - 1, np.uint8)),
        (20, np.zeros(PAGE_BYTES, np.uint8)),
        (-1, np.zeros(PAGE_BYTES, np.uint8)),
        (0, np.zeros(PAGE_BYTES // 4, np.float32)),
    ]:
        with pytest.raises(ValueError, match=f"uint8 CPU tensor of a multiple of {PAGE_BYTES} bytes"):
            cache.exported("kv_cache_read_pages")(cache.handle, 1, first, from_dlpack(buffer))


def test_state_of_another_layout_or_damaged(libraries, compressing_libraries):
    def gate(**policy):
        values = {"prefill": "entropy", "segment_size": 64, "threshold_len": 0} | policy
        text = ";".join(f"{key}={value}" for key, value in values.items())
        return NativeGate(libraries["float32"], *SIZES, block_size=8, policy=text)

    home = gate()
    home.add(1)
    home.begin([1], [200])
    home.gate()
    home.end()
    state, contents = home.save(1)
    others = [
        gate(segment_size=128),
        gate(layer_skip=0),
        NativeCache(libraries["float32"], "float32", *SIZES),
        NativeCache(libraries["bfloat16"], "bfloat16", *SIZES),
        compressing(compressing_libraries),
    ]
    for other in others:
        other.add(1)
        with pytest.raises(ValueError, match="is of a cache of another layout"):
            other.restore(1, state, contents)
    # Any damage is refused, or is a state that can be: never a crash.
    rng, bytes_ = np.random.default_rng(0), bytes(state)
    away = gate()
    empty = away.available_pages
    for cut in range(0, len(bytes_), 7):
        away.add(1)
        with pytest.raises(ValueError, match="ends early"):
            away.exported("kv_cache_restore_sequence")(away.handle, 1, bytes_[:cut])
        assert away.available_pages == empty
        away.remove(1)
    for _ in range(500):
        damaged = bytearray(bytes_)
        damaged[rng.integers(80, len(damaged))] ^= 1 << rng.integers(8)
        away.add(1)
        try:
            away.exported("kv_cache_restore_sequence")(away.handle, 1, bytes(damaged))
        except (ValueError, RuntimeError) as error:
            assert "saved" in str(error)
        away.remove(1)
        assert away.available_pages == empty
