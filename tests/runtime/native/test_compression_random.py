"""Random engine operations on a compressing cache against the numpy model: every head holds what the model keeps."""

import math

import numpy as np
import pytest
from cache_sizes import HEAD_DIM, HEADS, KV_HEADS, LAYERS, PAGE, WINDOW
from compression_model import CompressionModel
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from native_compression import CompressingCache

MAX_BATCH, CHUNK, ENGINE_PAGE = 3, 192, 16
IDS = st.integers(0, 3)
POLICY = {
    "decode": "latent",
    "window": WINDOW,
    "capacity": 136,
    "slack": 24,
    "decode_gap": 3,
    "pooling": "average",
    "pooling_kernel": 5,
    "adaptive_alpha": 0.2,
    "sinks": 4,
    "compress_when": "always",
}
CHANGES = {
    "full": {},
    "latent": {"decode_gap": 3, "pooling": "average", "pooling_kernel": 5},
    "snapkv": {"decode_gap": -1, "pooling": "max", "pooling_kernel": 7},
    "adakv": {"decode_gap": -1, "pooling": "max", "pooling_kernel": 7},
    "streaming": {"decode_gap": -1},
}


def policy_text(policy):
    return ";".join(f"{key}={value}" for key, value in policy.items())


class CompressionMachine(RuleBasedStateMachine):
    """Subclasses name the library, the dtype, the size of the pool and when to compress."""

    library, dtype, max_total, compress_when = None, None, None, None

    def __init__(self):
        super().__init__()
        policy = {**POLICY, "compress_when": self.compress_when}
        self.cache = self.new_cache(policy)
        self.empty_pages = self.cache.available_pages
        self.model = CompressionModel(self.cache.dtype, policy)
        self.sequences = self.model.sequences
        self.rng = np.random.default_rng(0)

    def new_cache(self, policy):
        sizes = (MAX_BATCH, self.max_total, CHUNK, ENGINE_PAGE)
        return CompressingCache(self.library, self.dtype, *sizes, policy=policy_text(policy))

    def alive(self):
        return sorted(self.sequences)

    @rule(decode=st.sampled_from(sorted(CHANGES)), capacity=st.sampled_from([100, 136, 200]))
    def configure(self, decode, capacity):
        self.configure_to({"decode": decode, "capacity": capacity, **CHANGES[decode]})

    def configure_to(self, change):
        self.cache.configure(policy_text(change))
        self.model.policy.update(change)

    @rule(seq=IDS, marked=st.booleans(), chunks=st.lists(st.integers(1, CHUNK), min_size=1, max_size=3))
    def prefill(self, seq, marked, chunks):
        if seq not in self.sequences:
            self.cache.add(seq)
            self.model.add(seq)
            if marked:
                self.mark(seq)
        for chunk in chunks:
            self.run([seq], [chunk])

    def mark(self, seq):
        self.cache.may_shrink(seq)
        self.sequences[seq].may_shrink = True

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), tokens=st.integers(1, 40))
    def decode(self, data, tokens):
        seqs = data.draw(st.lists(st.sampled_from(self.alive()), min_size=1, max_size=MAX_BATCH, unique=True))
        for _ in range(tokens):
            self.run(seqs, [1] * len(seqs))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), as_tree=st.booleans())
    def mixed_step(self, data, as_tree):
        seqs = data.draw(st.lists(st.sampled_from(self.alive()), min_size=1, max_size=MAX_BATCH, unique=True))
        length = st.one_of(st.just(1), st.integers(1, 20), st.integers(40, CHUNK // MAX_BATCH))
        self.run(seqs, data.draw(st.lists(length, min_size=len(seqs), max_size=len(seqs))), as_tree)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), child=IDS, marked=st.booleans(), back=st.integers(0, 100), tokens=st.integers(0, 20))
    def fork(self, data, child, marked, back, tokens):
        parent = data.draw(st.sampled_from(self.alive()))
        s = self.sequences[parent]
        if child in self.sequences or s.uncommitted:
            return
        position = data.draw(st.sampled_from([-1, max(0, s.length - back)]))
        if 0 <= position < s.exact_from:
            with pytest.raises(ValueError, match=rf"compressed and is whole only from position {s.exact_from} on"):
                self.cache.fork(parent, child, position)
            position = s.exact_from
        self.cache.fork(parent, child, position)
        self.model.fork(parent, child, position)
        if marked:
            self.mark(child)
        for _ in range(tokens):
            for seq in data.draw(st.permutations([parent, child])):
                self.run([seq], [1])

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), n=st.integers(0, 100))
    def pop(self, data, n):
        seq = data.draw(st.sampled_from(self.alive()))
        s = self.sequences[seq]
        n = min(n, s.length)
        if s.length - n < s.exact_from:
            with pytest.raises(ValueError, match=rf"compressed and is whole only from position {s.exact_from} on"):
                self.cache.pop(seq, n)
            n = s.length - s.exact_from
        self.cache.pop(seq, n)
        self.model.truncate(seq, s.length - n)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def remove(self, data):
        seq = data.draw(st.sampled_from(self.alive()))
        self.cache.remove(seq)
        del self.sequences[seq]

    @rule(pieces=st.integers(1, 3), order=st.randoms(use_true_random=False))
    def move_to_another_cache(self, pieces, order):
        """As if every sequence had been saved and loaded by another process."""
        # The library of a process without compression would not take these sequences.
        new = self.new_cache({**self.model.policy, "decode": "latent"})
        new.configure(policy_text(self.model.policy))
        seqs = self.alive()
        order.shuffle(seqs)
        self.commit([seq for seq in seqs if self.sequences[seq].uncommitted])
        for seq in seqs:
            new.add(seq)
            if self.sequences[seq].may_shrink:
                new.may_shrink(seq)
            try:
                new.restore(seq, *self.cache.save(seq, pieces), pieces)
            except RuntimeError as error:
                # Forks share their pages no longer.
                assert "The KV cache is full" in str(error) and self.max_total < 1000
                return
        self.cache = new

    @rule(really=st.integers(0, 9))
    def clear(self, really):
        if really == 0:
            self.cache.clear()
            self.sequences.clear()

    def run(self, seqs, lengths, as_tree=False):
        waiting = [seq for seq in seqs if self.sequences[seq].uncommitted]
        tree = None
        if as_tree:
            tree = [self.sequences[s].uncommitted + j - 1 for s, n in zip(seqs, lengths) for j in range(n)]
        elif waiting:
            with pytest.raises(RuntimeError, match="not committed"):
                self.cache.begin(seqs, lengths)
            self.commit(waiting)
        promised = sum(math.ceil(n / ENGINE_PAGE) for n in lengths) <= self.cache.available_pages
        due = {s for s, n in zip(seqs, lengths) if n == 1 and not as_tree and self.model.due(s)}
        try:
            self.cache.begin(seqs, lengths, tree)
        except RuntimeError as error:
            assert "The KV cache is full" in str(error) and not promised
            self.follow_compressions(set(), seqs, [0] * len(seqs))
            return
        self.follow_compressions(due, seqs, lengths)
        q, k, v = (
            self.rng.standard_normal((LAYERS, sum(lengths), heads, HEAD_DIM)).astype(self.cache.dtype)
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        )
        self.model.append(seqs, lengths, q, k, v, as_tree)
        self.cache.append(k, v)
        self.cache.observe(q)
        self.check_step(seqs, lengths)
        self.cache.end()
        self.follow_compressions(set(), seqs, [0] * len(seqs))

    def commit(self, seqs):
        leaves = [self.rng.integers(-1, self.sequences[s].uncommitted).item() for s in seqs]
        self.cache.commit(seqs, leaves)
        for seq, leaf in zip(seqs, leaves):
            self.model.commit(seq, leaf)

    def follow_compressions(self, due, seqs, lengths):
        """Compresses in the model what the cache has compressed: those that are due, others only for want of pages."""
        new_tokens = dict(zip(seqs, lengths))
        for seq, s in self.sequences.items():
            held = self.cache.positions(seq)
            entries = sum(len(p) - new_tokens.get(seq, 0) for layer in held for p in layer)
            if entries != sum(len(p) for layer in s.positions for p in layer):
                assert self.model.applies(seq)
                assert seq in due or self.max_total < 1000, "compressed for no reason"
                self.model.compress(seq, [[p[: len(p) - new_tokens.get(seq, 0)] for p in layer] for layer in held])
            else:
                # A fork may keep the pages that a compression would have to copy.
                assert seq not in due or self.max_total < 1000, "not compressed though due"

    def check_step(self, seqs, lengths):
        positions, query_indptr, _ = self.cache.step_tables()
        ends = [self.sequences[s].length for s in seqs]
        assert positions.tolist() == [t for end, n in zip(ends, lengths) for t in range(end - n, end)]
        self.check_query_slots(ends, query_indptr)
        for layer, (k, v) in enumerate(self.cache.read_layers()):
            slots, indptr, indices, kv_lengths = self.cache.layer_tables(layer)
            assert len(np.unique(slots)) == slots.size and indptr[-1, -1] == len(indices)
            for b, seq in enumerate(seqs):
                s = self.sequences[seq]
                for head in range(KV_HEADS):
                    n = len(s.positions[layer][head])
                    assert kv_lengths[head, b] == n and indptr[head, b + 1] - indptr[head, b] == math.ceil(n / PAGE)
                    np.testing.assert_array_equal(k[b, head, :n], s.keys[layer][head])
                    np.testing.assert_array_equal(v[b, head, :n], s.values[layer][head])

    def check_query_slots(self, ends, query_indptr):
        rows = self.cache.query_slots()
        owners = []
        for end, begin, stop in zip(ends, query_indptr, query_indptr[1:]):
            newest = rows[max(begin, stop - WINDOW) : stop]
            assert (rows[begin : stop - len(newest)] == -1).all()
            assert (newest % WINDOW == np.arange(end - len(newest), end) % WINDOW).all()
            owners.append(newest[0] // WINDOW)
            assert (newest // WINDOW == owners[-1]).all()
        assert len(set(owners)) == len(owners) and min(owners) >= 0

    @invariant()
    def same_sizes(self):
        assert self.cache.empty == (not self.sequences)
        assert self.cache.total_length == sum(s.max_entries for s in self.sequences.values())

    @invariant()
    def same_entries(self):
        for seq, s in self.sequences.items():
            assert self.cache.exact_from(seq) == s.exact_from
            for got, want in zip(self.cache.positions(seq), s.positions):
                for got_head, want_head in zip(got, want):
                    np.testing.assert_array_equal(got_head, want_head)

    @invariant()
    def same_exact_contents(self):
        for seq, s in self.sequences.items():
            if s.length > s.exact_from:
                contents = self.cache.contents(seq, s.exact_from, s.length)
                for got, want in zip(contents, (s.keys, s.values)):
                    for layer in range(LAYERS):
                        for head in range(KV_HEADS):
                            np.testing.assert_array_equal(
                                got[layer, :, head], want[layer][head][len(want[layer][head]) - got.shape[1] :]
                            )

    def teardown(self):
        self.configure_to({"decode": "full"})
        for seq in self.alive():
            if self.sequences[seq].uncommitted:
                self.commit([seq])
            self.run([seq], [1])
        for seq in self.alive():
            self.cache.remove(seq)
        assert self.cache.available_pages == self.empty_pages


@pytest.mark.parametrize(
    "dtype, max_total, compress_when, examples",
    [
        ("float32", 8192, "always", 50),
        ("bfloat16", 8192, "always", 20),
        ("float32", 700, "always", 50),
        ("float32", 700, "pressure", 40),
    ],
)
def test_random_operations(compressing_libraries, dtype, max_total, compress_when, examples):
    members = {"max_total": max_total, "compress_when": compress_when}
    members |= {"library": compressing_libraries[dtype], "dtype": dtype}
    machine = type("Machine", (CompressionMachine,), members)
    config = settings(
        max_examples=examples,
        stateful_step_count=30,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # shrinking a failure takes minutes
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=config)
