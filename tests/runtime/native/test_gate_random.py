"""Random sequences of engine operations, prefilled sparsely or not, against a numpy model of the gate."""

import numpy as np
import pytest
from cache_sizes import KV_HEADS, LAYERS
from gate_model import GateModel
from hypothesis import HealthCheck, settings
from hypothesis.stateful import invariant, run_state_machine_as_test
from native_gate import NativeGate
from test_kv_cache_random import CHUNK, ENGINE_PAGE, MAX_BATCH, MAX_TOTAL, CacheMachine

BASE_BUDGET = 64


class GateMachine(CacheMachine):
    """Half of the steps run a function with a gate. Subclasses name the library and the policy's numbers."""

    numbers = None

    def __init__(self):
        super().__init__()
        self.model = GateModel(self.cache.dtype, MAX_BATCH, MAX_TOTAL, ENGINE_PAGE, **self.numbers)

    def new_cache(self):
        policy = "prefill=entropy;" + ";".join(f"{k}={v}" for k, v in self.numbers.items() if k != "block_size")
        sizes = (MAX_BATCH, MAX_TOTAL, CHUNK, ENGINE_PAGE)
        return NativeGate(self.library, *sizes, block_size=self.numbers["block_size"], policy=policy)

    def use_step(self, seqs, lengths, as_tree):
        if self.rng.integers(2):
            return
        segments, tiles, ranges, scores, counts, lists = self.cache.gate()
        expected = self.model.segments(seqs, lengths, as_tree)
        assert segments.tolist() == expected
        self.check_tiles(tiles, lengths, self.model.row_segments(seqs, lengths, expected))
        assert ranges.tolist() == self.model.block_ranges(seqs)
        blocks_per_segment = self.model.segment_size // self.model.block_size
        most = max([1, *(s * blocks_per_segment for _, _, s, _, _ in expected)])
        assert scores.shape == lists.shape == (len(expected), KV_HEADS, most) and counts.shape == scores.shape[:2]

        self.model.represent(seqs)
        observed = [[] for _ in expected]
        for layer in range(self.model.layer_skip, LAYERS):
            self.cache.compute_representatives(layer, len(seqs), ranges)
            for b, seq in enumerate(seqs):
                for got, want in zip(*self.both_representatives(layer, b, seq)):
                    np.testing.assert_array_equal(got, want)
            gates = self.cache.layer_gate(layer)[1]
            assert gates.shape == (len(seqs) + len(expected), KV_HEADS, 4)
            np.testing.assert_array_equal(gates[: len(seqs)], self.model.states(seqs, layer))
            for i in range(len(expected)):
                gates[len(seqs) + i] = self.rng.standard_normal((KV_HEADS, 4))
                observed[i].append(gates[len(seqs) + i].copy())
        self.model.observe(seqs, expected, observed)

    def both_representatives(self, layer, b, seq):
        want = self.model.representatives(seq, layer)
        return self.cache.representatives(layer, b, want[0].shape[1]), want

    def check_tiles(self, tiles, lengths, owners):
        rows = [[None] * n for n in lengths]
        for b, first, count, segment in tiles.tolist():
            assert 1 <= count <= 64
            assert rows[b][first : first + count] == [None] * count
            rows[b][first : first + count] = [segment] * count
        assert rows == owners

    @invariant()
    def same_gates(self):
        for seq in self.model.sequences:
            np.testing.assert_array_equal(self.cache.gates(seq), self.model.gates(seq))


@pytest.mark.parametrize(
    "segment_size, block_size, threshold_len, layer_skip",
    [
        (64, 8, 128, 1),
        (128, 64, 0, 0),
        (64, 32, 10**6, 1),
    ],
)
def test_random_operations(libraries, segment_size, block_size, threshold_len, layer_skip):
    numbers = {
        "segment_size": segment_size,
        "block_size": block_size,
        "threshold_len": threshold_len,
        "base_budget": BASE_BUDGET,
        "layer_skip": layer_skip,
    }
    attributes = {"library": libraries["float32"], "dtype": "float32", "numbers": numbers}
    config = settings(
        max_examples=20,
        stateful_step_count=40,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(type("Machine", (GateMachine,), attributes), settings=config)
