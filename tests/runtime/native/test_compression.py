"""What a compressing cache promises, one promise a test. Random mixtures are in test_compression_random.py."""

import numpy as np
import pytest
from cache_sizes import HEAD_DIM, HEADS, KV_HEADS, LAYERS, PAGE, WINDOW
from native_compression import CompressingCache
from tvm_ffi import Shape

ENGINE_PAGE = 16
FOUR_POLICIES = ["latent", "snapkv", "adakv", "streaming"]


def make(libraries, policy="", max_batch=4, max_total=4096, chunk=1024):
    values = {"window": WINDOW, "capacity": 128, "decode_gap": 0, "slack": 0}
    values |= dict(item.split("=") for item in policy.split(";") if item)
    text = ";".join(f"{key}={value}" for key, value in values.items())
    return CompressingCache(libraries["float32"], "float32", max_batch, max_total, chunk, ENGINE_PAGE, policy=text)


def forward(cache, seqs, lengths, scale=1.0):
    """A step of random tokens. scale: of the keys, [G]; a head of large keys has peaked scores."""
    rng = np.random.default_rng(sum(lengths))
    k, v = rng.standard_normal((2, LAYERS, sum(lengths), KV_HEADS, HEAD_DIM)).astype(np.float32)
    cache.begin(seqs, lengths)
    cache.append(k * np.asarray(scale, np.float32).reshape(-1, 1), v)
    cache.observe(rng.standard_normal((LAYERS, sum(lengths), HEADS, HEAD_DIM)).astype(np.float32))
    cache.end()


def start(cache, seq, tokens, may_shrink=True, scale=1.0):
    cache.add(seq)
    if may_shrink:
        cache.may_shrink(seq)
    for first in range(0, tokens, 256):
        forward(cache, [seq], [min(tokens - first, 256)], scale)


def entries(cache, seq):
    """Entries of each layer and head, [layers, G]."""
    return np.array([[len(p) for p in layer] for layer in cache.positions(seq)])


@pytest.mark.parametrize("decode", FOUR_POLICIES)
def test_memory_really_goes_back(compressing_libraries, decode):
    cache = make(compressing_libraries, f"decode={decode}")
    empty = cache.available_pages
    start(cache, 1, 1000)
    assert cache.available_pages == empty - 16 * PAGE // ENGINE_PAGE
    forward(cache, [1], [1])
    lengths = entries(cache, 1)
    assert (lengths.mean(axis=1) <= 129.5).all() and cache.total_length == lengths.max()
    pages = max(-(-(-(-layer // PAGE)).sum() // KV_HEADS) for layer in lengths)
    assert pages <= 4
    assert cache.available_pages == empty - pages * PAGE // ENGINE_PAGE
    cache.remove(1)
    assert cache.available_pages == empty


def test_heads_of_unequal_length_share_pages(compressing_libraries):
    """AdaKV gives a head of flat scores many entries, and they go where the other heads need no room."""
    cache = make(compressing_libraries, "decode=adakv;adaptive_alpha=0;pooling_kernel=1;capacity=256")
    empty = cache.available_pages
    start(cache, 1, 1000, scale=[0.01, 30.0])
    forward(cache, [1], [1])
    lengths = entries(cache, 1)
    assert (lengths.max(axis=1) > 340).all() and (lengths.min(axis=1) < 180).all()
    # Pages as long as the longest head would be six.
    assert cache.available_pages == empty - 5 * PAGE // ENGINE_PAGE


@pytest.mark.parametrize(
    "policy, first",
    [
        ("decode=latent;decode_gap=5", 5),
        ("decode=latent;decode_gap=0", 0),
        ("decode=snapkv;decode_gap=-1", 0),
    ],
)
def test_the_gap_counts_generated_tokens(compressing_libraries, policy, first):
    cache = make(compressing_libraries, policy)
    start(cache, 1, 300)
    for _ in range(first):
        forward(cache, [1], [1])
        assert cache.exact_from(1) == 0 and cache.total_length > 300
    forward(cache, [1], [1])
    assert cache.total_length == 129 and cache.exact_from(1) == 300 + first - 64
    forward(cache, [1], [70])
    for _ in range(first):
        forward(cache, [1], [1])
        assert cache.exact_from(1) == 300 + first - 64
    forward(cache, [1], [1])
    assert cache.total_length == 129 and cache.exact_from(1) == 300 + first + 1 + 70 + first - 64


def test_slack_counts_after_the_first_compression(compressing_libraries):
    cache = make(compressing_libraries, "decode=snapkv;slack=10")
    start(cache, 1, 129)
    sizes = []
    for _ in range(24):
        forward(cache, [1], [1])
        sizes.append(cache.total_length)
    assert sizes == [*range(129, 140), *range(129, 140), 129, 130]


def test_only_marked_sequences_shrink(compressing_libraries):
    cache = make(compressing_libraries, "decode=snapkv")
    start(cache, 1, 300, may_shrink=False)
    start(cache, 2, 300)
    forward(cache, [1, 2], [1, 1])
    assert (cache.exact_from(1), cache.exact_from(2)) == (0, 300 - 64)
    assert cache.positions(1)[1][1].tolist() == list(range(301))


def test_streaming_keeps_sinks_and_the_latest(compressing_libraries):
    cache = make(compressing_libraries, "decode=streaming;sinks=3")
    start(cache, 1, 300)
    for length in (301, 302):
        forward(cache, [1], [1])
        for layer in cache.positions(1):
            for head in layer:
                assert head.tolist() == [0, 1, 2, *range(length - 1 - 125, length)]


def test_a_fork_keeps_what_a_compression_of_the_other_drops(compressing_libraries):
    cache = make(compressing_libraries, "decode=snapkv")
    start(cache, 1, 500, may_shrink=False)
    before = cache.contents(1, 0, 500)
    available = cache.available_pages
    cache.fork(1, 2)
    cache.may_shrink(2)
    forward(cache, [2], [1])
    assert entries(cache, 2).max() == 129
    assert cache.available_pages == available - 3 * PAGE // ENGINE_PAGE
    for got, want in zip(cache.contents(1, 0, 500), before):
        np.testing.assert_array_equal(got, want)
    cache.remove(2)
    assert cache.available_pages == available


def test_popped_queries_do_not_count(compressing_libraries):
    cache = make(compressing_libraries, "decode=snapkv")
    start(cache, 1, 300)
    cache.pop(1, 5)
    for _ in range(5):
        forward(cache, [1], [1])
        assert cache.exact_from(1) == 0
    forward(cache, [1], [1])
    assert cache.exact_from(1) == 300 - 64


def test_cuts_below_the_exact_part_are_refused(compressing_libraries):
    cache = make(compressing_libraries, "decode=snapkv")
    start(cache, 1, 300)
    forward(cache, [1], [1])
    message = "Sequence 1 was compressed and is whole only from position 236 on; it cannot be cut or read at 235"
    for call in (lambda: cache.pop(1, 66), lambda: cache.fork(1, 2, 235), lambda: cache.contents(1, 235, 301)):
        with pytest.raises(ValueError, match=message):
            call()
    cache.fork(1, 2, 236)
    cache.pop(1, 65)
    assert entries(cache, 1).tolist() == entries(cache, 2).tolist() == [[64] * KV_HEADS] * LAYERS


@pytest.mark.parametrize("when", ["always", "pressure"])
def test_a_prompt_larger_than_the_pool(compressing_libraries, when):
    cache = make(compressing_libraries, f"decode=latent;compress_when={when}", 2, 600, 200)
    start(cache, 1, 0)
    for _ in range(20):
        # What an engine would ask before it plans the next chunk.
        assert cache.available_pages * ENGINE_PAGE >= 200
        forward(cache, [1], [200])
    cache.add(2)
    with pytest.raises(RuntimeError, match="The KV cache is full"):
        for _ in range(20):
            forward(cache, [2], [200])


def test_pressure_compresses_nothing_while_there_is_room(compressing_libraries):
    cache = make(compressing_libraries, "decode=snapkv;compress_when=pressure", max_total=2048, chunk=256)
    start(cache, 1, 1000)
    for _ in range(5):
        forward(cache, [1], [1])
    start(cache, 2, 512)
    start(cache, 3, 600)
    assert cache.available_pages * ENGINE_PAGE < 256
    assert cache.exact_from(1) == 0, "a step that is no whole chunk is the end of its prompt"
    start(cache, 4, 256)
    assert (cache.exact_from(1) > 0, cache.exact_from(2), cache.exact_from(3)) == (True, 0, 0), "the largest first"


def test_pressure_takes_no_more_than_is_missing(compressing_libraries):
    """A pool of 2048 + 16 + 112 entries, 34 pages: a sequence of 30 gives the two that another wants, and the slack."""
    cache = make(compressing_libraries, "decode=snapkv;compress_when=pressure;slack=100", 1, 2048, 1024)
    start(cache, 1, 30 * PAGE)
    start(cache, 2, 4 * PAGE - 10)
    assert cache.exact_from(1) == 0
    forward(cache, [2], [10 + 2 * PAGE])
    assert (entries(cache, 1) == (30 - 2 - 2) * PAGE).all() and cache.exact_from(2) == 0
    assert cache.available_pages == (2 * PAGE - (PAGE - ENGINE_PAGE)) // ENGINE_PAGE
    forward(cache, [2], [4 * PAGE])
    assert (entries(cache, 1) == (26 - 2 - 2) * PAGE).all() and cache.exact_from(2) == 0


def test_a_token_tree_waits(compressing_libraries):
    cache = make(compressing_libraries, "decode=snapkv;compress_when=pressure", 1, 384, 128)
    cache.add(1)
    cache.may_shrink(1)
    for first in (0, 128, 256):
        cache.begin([1], [128], list(range(first - 1, first + 127)))
        cache.end()
    assert cache.exact_from(1) == 0 and cache.total_length == 384
    cache.commit([1], [383])
    cache.begin([1], [128])
    cache.end()
    assert cache.exact_from(1) == 512 - 64


def test_sequences_without_a_slot_stay_whole(compressing_libraries):
    cache = make(compressing_libraries, "decode=latent")
    for seq in range(1024):
        cache.add(seq)
    start(cache, 1024, 200)
    cache.begin([1024], [1])
    assert cache.query_slots().tolist() == [-1] and cache.exact_from(1024) == 0
    cache.end()
    cache.remove(7)
    cache.fork(1024, 1025)
    cache.may_shrink(1025)
    cache.begin([1025], [WINDOW + 2])
    row = 7 * WINDOW
    assert cache.query_slots().tolist() == [-1, -1] + [row + (203 + i) % WINDOW for i in range(WINDOW)]
    cache.end()
    forward(cache, [1025], [1])
    assert cache.exact_from(1025) > 0


def test_kernel_errors_leave_the_sequence_whole(compressing_libraries):
    cache = make(compressing_libraries, "decode=snapkv")
    sizes, model = Shape((4, 4096, 1024, 16, 0)), Shape((LAYERS, HEADS, KV_HEADS, 2 * HEAD_DIM, PAGE))
    text = f"decode=snapkv;window={WINDOW};capacity=128;decode_gap=-1"
    cache.handle = cache.create(sizes, model, "float32", text)
    cache.add(1)
    cache.may_shrink(1)
    cache.begin([1], [300])
    cache.end()
    available = cache.available_pages
    with pytest.raises(ValueError, match="kv_window_scores"):
        cache.begin([1], [1])
    assert cache.exact_from(1) == 0 and cache.available_pages == available
    assert cache.positions(1)[0][0].tolist() == list(range(300))


def test_a_library_without_kernels_says_so(libraries):
    cache = make(libraries, "decode=snapkv")
    cache.add(1)
    cache.may_shrink(1)
    cache.begin([1], [300])
    cache.end()
    with pytest.raises(RuntimeError, match="no kernels that compress its KV cache"):
        cache.begin([1], [1])


def test_wrong_questions(compressing_libraries):
    cache = make(compressing_libraries, "decode=latent")
    start(cache, 1, 3)
    positions, exact_from = cache.exported("kv_cache_positions"), cache.exported("kv_cache_exact_from")
    for call, message in (
        (lambda: positions(cache.handle, 2, 0, 0), "Sequence 2 is not"),
        (lambda: positions(cache.handle, 1, LAYERS, 0), f"no layer {LAYERS}"),
        (lambda: positions(cache.handle, 1, 0, KV_HEADS), f"no head {KV_HEADS}"),
        (lambda: exact_from(cache.handle, 2), "Sequence 2 is not"),
        (lambda: make(compressing_libraries, "decode=latent;capacity=64"), "capacity must exceed"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(RuntimeError, match="needs an open step"):
        cache.query_slots()
    full = make(compressing_libraries, "")
    full.add(1)
    full.begin([1], [1])
    with pytest.raises(RuntimeError, match="query window: it was compiled for a full decode"):
        full.query_slots()
