"""Random sequences of engine operations against a numpy model of the cache."""

import math

import numpy as np
import pytest
from cache_model import CacheModel
from cache_sizes import HEAD_DIM, KV_HEADS, LAYERS, PAGE
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from native_cache import NativeCache

MAX_BATCH, MAX_TOTAL, CHUNK, ENGINE_PAGE = 4, 512, 256, 16
IDS = st.integers(0, 6)


class CacheMachine(RuleBasedStateMachine):
    """Small enough to run out of pages often. Subclasses name the library and the dtype."""

    library, dtype = None, None

    def __init__(self):
        super().__init__()
        self.cache = self.new_cache()
        self.model = CacheModel(self.cache.dtype, MAX_BATCH, MAX_TOTAL, ENGINE_PAGE)
        self.rng = np.random.default_rng(0)

    def new_cache(self):
        return NativeCache(self.library, self.dtype, MAX_BATCH, MAX_TOTAL, CHUNK, ENGINE_PAGE)

    def alive(self):
        return sorted(self.model.sequences)

    @rule(seq=IDS)
    def add(self, seq):
        if seq in self.model.sequences:
            with pytest.raises(ValueError, match="already in the KV cache"):
                self.cache.add(seq)
        else:
            self.cache.add(seq)
            self.model.add(seq)

    @rule(seq=IDS)
    def remove(self, seq):
        if seq not in self.model.sequences:
            with pytest.raises(ValueError, match="not in the KV cache"):
                self.cache.remove(seq)
        else:
            self.cache.remove(seq)
            del self.model.sequences[seq]

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data(), child=IDS)
    def fork(self, data, child):
        parent = data.draw(st.sampled_from(self.alive()))
        s = self.model.sequences[parent]
        position = data.draw(st.one_of(st.just(-1), st.integers(0, s.length)))
        if child in self.model.sequences or s.uncommitted:
            with pytest.raises((ValueError, RuntimeError), match="already in the KV cache|not committed"):
                self.cache.fork(parent, child, position)
        else:
            self.cache.fork(parent, child, position)
            self.model.fork(parent, child, position)

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data(), child=IDS, tokens=st.integers(1, 40), parent_first=st.booleans())
    def fork_and_write(self, data, child, tokens, parent_first):
        parent = data.draw(st.sampled_from(self.alive()))
        if child in self.model.sequences or self.model.sequences[parent].uncommitted:
            return
        position = data.draw(st.one_of(st.just(-1), st.integers(0, self.model.sequences[parent].length)))
        self.cache.fork(parent, child, position)
        self.model.fork(parent, child, position)
        for seq in [parent, child] if parent_first else [child, parent]:
            self.run([seq], [tokens], as_tree=False)

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data())
    def pop(self, data):
        seq = data.draw(st.sampled_from(self.alive()))
        length = self.model.sequences[seq].length
        n = data.draw(st.integers(0, length))
        self.cache.pop(seq, n)
        self.model.truncate(seq, length - n)

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data())
    def mark(self, data):
        self.cache.may_shrink(data.draw(st.sampled_from(self.alive())))

    @rule(seq=IDS, chunks=st.lists(st.integers(1, CHUNK), min_size=1, max_size=2))
    def prefill(self, seq, chunks):
        if seq not in self.model.sequences:
            self.add(seq)
        for chunk in chunks:
            self.run([seq], [chunk], as_tree=False)

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data(), tokens=st.integers(1, 30))
    def decode(self, data, tokens):
        seqs = data.draw(st.lists(st.sampled_from(self.alive()), min_size=1, max_size=MAX_BATCH, unique=True))
        for _ in range(tokens):
            self.run(seqs, [1] * len(seqs), as_tree=False)

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data(), as_tree=st.booleans())
    def mixed_step(self, data, as_tree):
        seqs = data.draw(st.lists(st.sampled_from(self.alive()), min_size=1, max_size=MAX_BATCH + 1, unique=True))
        longest = CHUNK // len(seqs)
        length = st.one_of(st.just(1), st.integers(1, 20), st.integers(longest // 2, longest))
        self.run(seqs, data.draw(st.lists(length, min_size=len(seqs), max_size=len(seqs))), as_tree)

    def run(self, seqs, lengths, as_tree):
        tree = None
        waiting = [s for s in seqs if self.model.sequences[s].uncommitted]
        if as_tree:
            tree = [self.model.sequences[s].uncommitted + j - 1 for s, n in zip(seqs, lengths) for j in range(n)]
        elif waiting:
            with pytest.raises(RuntimeError, match="not committed"):
                self.cache.begin(seqs, lengths)
            self.commit_to(waiting, [self.model.sequences[s].uncommitted - 1 for s in waiting])
        if self.model.new_pages(seqs, lengths) > self.model.free_pages:
            engine_pages = sum(math.ceil(n / ENGINE_PAGE) for n in lengths)
            assert len(seqs) > MAX_BATCH or engine_pages > self.cache.available_pages, "an engine would have trusted us"
            used = self.model.num_pages - self.model.free_pages
            with pytest.raises(RuntimeError, match=f"full: {used} of {self.model.num_pages} pages"):
                self.cache.begin(seqs, lengths, tree)
            return
        shape = (LAYERS, sum(lengths), KV_HEADS, HEAD_DIM)
        k, v = (self.rng.standard_normal(shape).astype(self.cache.dtype) for _ in range(2))
        self.cache.begin(seqs, lengths, tree)
        self.model.append(seqs, lengths, k, v, as_tree)
        self.check_tables(seqs, lengths)
        self.cache.append(k, v)
        self.check_contents_by_tables(seqs)
        self.use_step(seqs, lengths, as_tree)
        self.cache.end()

    def use_step(self, seqs, lengths, as_tree):
        """What else a step does, for machines with more to check."""

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data())
    def commit(self, data):
        seqs = data.draw(st.lists(st.sampled_from(self.alive()), min_size=1, max_size=3, unique=True))
        leaves = [data.draw(st.integers(-1, self.model.sequences[s].uncommitted - 1)) for s in seqs]
        self.commit_to(seqs, leaves)

    def commit_to(self, seqs, leaves):
        self.cache.commit(seqs, leaves)
        for seq, leaf in zip(seqs, leaves):
            self.model.commit(seq, leaf)

    @rule(pieces=st.integers(1, 3), order=st.randoms(use_true_random=False))
    def move_to_another_cache(self, pieces, order):
        """As if every sequence had been saved and loaded by another process."""
        seqs = self.alive()
        order.shuffle(seqs)
        if sum(math.ceil(s.length / PAGE) for s in self.model.sequences.values()) > self.model.num_pages:
            return
        new = self.new_cache()
        for seq in seqs:
            uncommitted = self.model.sequences[seq].uncommitted
            if uncommitted:
                with pytest.raises(RuntimeError, match="token tree is not committed"):
                    self.cache.save(seq)
                self.commit_to([seq], [uncommitted - 1])
            new.add(seq)
            new.restore(seq, *self.cache.save(seq, pieces), pieces)
        self.cache = new
        self.model.move()

    @rule(really=st.integers(0, 9))
    def clear(self, really):
        if really == 0:
            self.cache.clear()
            self.model.sequences.clear()

    def teardown(self):
        for seq in self.alive():
            self.remove(seq)
            self.same_sizes()
        assert self.model.free_pages == self.model.num_pages

    def check_tables(self, seqs, lengths):
        positions, query_indptr, tiles = self.cache.step_tables()
        ends = [self.model.sequences[s].length for s in seqs]
        assert positions.tolist() == [t for end, n in zip(ends, lengths) for t in range(end - n, end)]
        assert query_indptr.tolist() == [0, *np.cumsum(lengths)]
        rows = sorted((b, row) for b, q0 in tiles.tolist() for row in range(q0, min(q0 + 64, lengths[b])))
        assert rows == [(b, row) for b, n in enumerate(lengths) for row in range(n)]
        for layer in range(LAYERS):
            slots, indptr, indices, kv_lengths = self.cache.layer_tables(layer)
            assert kv_lengths.tolist() == [ends] * KV_HEADS
            for head in range(KV_HEADS):
                expected = []
                for b, (end, n) in enumerate(zip(ends, lengths)):
                    pages = indices[indptr[head, b] : indptr[head, b + 1]]
                    assert len(pages) == math.ceil(end / PAGE) and (pages % KV_HEADS == head).all()
                    expected += [pages[t // PAGE] * PAGE + t % PAGE for t in range(end - n, end)]
                assert slots[head].tolist() == expected
            assert len(np.unique(slots)) == slots.size and indptr[-1, -1] == len(indices)

    def check_contents_by_tables(self, seqs):
        k, v = self.cache.read()
        for b, seq in enumerate(seqs):
            s = self.model.sequences[seq]
            for got, want in ((k, s.k), (v, s.v)):
                np.testing.assert_array_equal(got[:, b, :, : s.length].swapaxes(1, 2), want)

    @invariant()
    def same_sizes(self):
        assert self.cache.empty == (not self.model.sequences)
        assert self.cache.total_length == sum(s.length for s in self.model.sequences.values())
        assert self.cache.available_pages == self.model.available_engine_pages

    @invariant()
    def same_contents(self):
        for seq, s in self.model.sequences.items():
            if s.length:
                k, v = self.cache.contents(seq, 0, s.length)
                np.testing.assert_array_equal(k, s.k)
                np.testing.assert_array_equal(v, s.v)


@pytest.mark.parametrize("dtype, examples", [("float32", 40), ("bfloat16", 15)])
def test_random_operations(libraries, dtype, examples):
    machine = type("Machine", (CacheMachine,), {"library": libraries[dtype], "dtype": dtype})
    config = settings(
        max_examples=examples,
        stateful_step_count=40,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=config)
