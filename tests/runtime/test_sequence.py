"""The sequence over a fake library: what it asks of the cache, with compression and segments in play.

Sequences over the real cache object are in test_engine.py.
"""

from types import SimpleNamespace

import pytest

from runtime.policy import make_policy
from runtime.sequence import CachedSequence

CONTEXT, CHUNK = 4096, 256


class FakeKV:
    """Keeps the length of one sequence, and the calls."""

    def __init__(self):
        self.calls = []
        self.length = self.compressed_to = 0

    def add_sequence(self, _id):
        self.calls.append("add")
        self.length = self.compressed_to = 0

    def clear(self):
        self.calls.append("clear")

    def enable_sliding_window(self, _id, window):
        self.calls.append(("may shrink", window))

    def popn(self, _id, count):
        self.length -= count
        assert self.length >= self.compressed_to, "popped into the compressed part"
        self.calls.append(("popn", count))

    def exact_from(self, _id):
        return self.compressed_to

    def configure(self, text):
        self.calls.append(text)

    def begin_forward(self, _ids, lengths):
        self.calls.append(lengths[0])
        self.length += lengths[0]

    def end_forward(self):
        pass

    @property
    def total_sequence_length(self):
        return self.length


def make(policy=None):
    """A sequence, its cache, and the function that takes the calls so far."""
    kv = FakeKV()

    def embed(ids, _params):
        return ids

    def forward(hidden, _kv, _params):
        return hidden[-1]

    metadata = SimpleNamespace(prefill_chunk_size=CHUNK, policy=policy)
    library = SimpleNamespace(
        metadata=metadata, create_kv_state=lambda _size: kv, embed=embed, prefill=forward, decode=forward
    )
    sequence = CachedSequence(library, None, CONTEXT)

    def calls():
        taken, kv.calls = kv.calls, []
        return taken

    return sequence, kv, calls


@pytest.mark.parametrize(
    ("policy", "opened"),
    [
        (None, ["add"]),
        (make_policy("entropy", "full"), ["add"]),
        (make_policy("dense", "streaming"), ["add", ("may shrink", CONTEXT)]),
    ],
)
def test_a_sequence_that_may_shrink_is_marked_whenever_it_is_opened(policy, opened):
    sequence, _, calls = make(policy)
    assert calls() == opened
    sequence.clear()
    assert calls() == ["clear", *opened]


def test_the_mark_is_the_librarys_not_of_the_policy_in_force():
    compiled = make_policy()
    sequence, _, calls = make(compiled)
    sequence.set_policy(compiled.changed("decode=full"))
    assert calls()[-1] == make_policy(decode="full").cache_text()
    sequence.clear()
    # Compression may be switched on again before the sequence is opened anew.
    assert calls() == ["clear", "add", ("may shrink", CONTEXT)]


def test_compressed_sequence_is_not_cut_where_entries_are_gone():
    sequence, kv, calls = make(make_policy("dense", "latent"))
    prompt = list(range(200))
    sequence.prefill(prompt)
    sequence.decode(1000)
    kv.compressed_to = 137
    calls()
    assert sequence.reuse([*prompt[:150], 7, 8]) == 150 and calls() == [("popn", 51)]
    assert sequence.reuse([*prompt[:137], 7]) == 137 and calls() == [("popn", 13)]
    # An extension cuts nothing, wherever the compressed part ends.
    kv.compressed_to = 10_000
    assert sequence.reuse(prompt) == 137 and calls() == []
    kv.compressed_to = 137
    assert sequence.reuse([*prompt[:136], 7]) == 0
    assert calls() == ["clear", "add", ("may shrink", CONTEXT)] and sequence.token_ids == []
    sequence.prefill(prompt[:136])
    assert sequence.reuse(prompt[:50]) == 48  # uncompressed again
    assert sequence.reuse(prompt[:1]) == 0


def test_steps_end_where_segments_do():
    policy = make_policy("entropy", "full", "segment_size=64;threshold_len=0")
    sequence, _, calls = make(policy)
    calls()
    progress = []
    assert sequence.prefill(range(300), lambda *counts: progress.append(counts)) == 299
    assert calls() == [256, 44] and progress == [(0, 300), (256, 300), (300, 300)]
    # 300 + 340 ends with a whole segment.
    assert sequence.prefill(range(340), lambda *counts: progress.append(counts)) == 339
    assert calls() == [212, 96, 32] and sequence.token_ids == [*range(300), *range(340)]
    sequence.clear()
    sequence.set_policy(policy.changed("threshold_len=4096"))
    calls()
    sequence.prefill(range(640))
    assert calls() == [256, 256, 128]
