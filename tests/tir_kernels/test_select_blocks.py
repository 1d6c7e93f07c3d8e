"""select_blocks against a stable sort: it compares the scores that it is given, so the sets are exactly equal."""

import numpy as np
import pytest
import tvm
from compiled import compiled
from entropy_oracle import GateParameters, best_blocks

from tir_kernels.cpu.select_blocks import select_blocks


def _check(kernel, parameters, segments, keep, scores):
    """keep [n_seg, G]; scores [n_seg, G, max_blocks] with NaN beyond the blocks of a segment."""
    p, num_segments, states = parameters, len(segments), 2
    gates = np.full((states + num_segments, keep.shape[1], 4), np.nan, np.float32)
    gates[states:, :, 2] = keep
    first, recent = p.keep_first // p.block_size, p.keep_recent // p.block_size
    table = np.float32([0, 0, 0, 0, 0, first, recent, 0])
    counts = tvm.runtime.tensor(np.full(keep.shape, -7, np.int32))
    lists = tvm.runtime.tensor(np.full(scores.shape, -7, np.int32))
    kernel(*(tvm.runtime.tensor(x) for x in (scores, gates, segments, table)), counts, lists)
    for i, (_, _, s, _, gated) in enumerate(segments):
        blocks = s * p.segment_size // p.block_size
        for h in range(keep.shape[1]):
            expected = best_blocks(scores[i, h, :blocks], keep[i, h], p) if gated else np.array([], int)
            assert counts.numpy()[i, h] == len(expected)
            np.testing.assert_array_equal(lists.numpy()[i, h, : len(expected)], expected)
            assert np.all(lists.numpy()[i, h, len(expected) :] == -7)


@pytest.mark.parametrize(("keep_first", "keep_recent"), [(0, 0), (32, 0), (0, 64), (64, 256), (4096, 64)])
def test_select_blocks(isa_target, keep_first, keep_recent):
    target, isa = isa_target
    rng = np.random.default_rng(0)
    p = GateParameters(segment_size=128, block_size=8, keep_first=keep_first, keep_recent=keep_recent)
    kernel = compiled(select_blocks(3, p.segment_size, p.block_size, isa), target)
    segments = np.array([(0, 0, 1, 0, 1), (0, 128, 2, 2, 1), (1, 0, 7, 1, 0), (1, 128, 31, 4, 1)], np.int32)
    blocks = segments[:, 2] * 16
    scores = np.full((4, 3, blocks.max()), np.nan, np.float32)
    for i, count in enumerate(blocks):
        scores[i, 0, :count] = rng.normal(300, 50, count)
        scores[i, 1, :count] = rng.integers(0, 5, count)  # many ties
        scores[i, 2, :count] = rng.random(count) ** 200  # a softmax: zeros and denormals
    for fraction in (0, 0.02, 0.3, 1):
        keep = np.tile((blocks * fraction).astype(int)[:, None], (1, 3))
        keep[:, 1] = np.minimum(keep[:, 1] + 1, blocks)
        _check(kernel, p, segments, keep, scores)


def test_no_segments(isa_target):
    target, isa = isa_target
    kernel = compiled(select_blocks(2, 128, 8, isa), target)
    _check(kernel, GateParameters(), np.zeros((0, 5), np.int32), np.zeros((0, 2), int), np.zeros((0, 2, 1), np.float32))
