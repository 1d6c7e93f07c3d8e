"""kv_select_entries on a GPU against the published formulas.

Scores are multiples of 2**-20 below 2**-3: sums of a pooling kernel are exact in float32, so the sets are equal, ties
included.
"""

import itertools

import compression_oracle
import numpy as np
import pytest
from gpu import emulated_cuda

from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.select_entries import select_entries

_HEADS = 3
_TAIL = 64
_ALPHAS = (None, 0.0, 0.2, 0.5)


@pytest.fixture(scope="module")
def select():
    """select(scores, capacity, tail, kernel, use_max, alpha, max_kept) -> kept entries of each head."""
    kernel = emulated_cuda.compile(select_entries(_HEADS, gpu_features(emulated_cuda.target())))

    def call(scores, capacity, tail, pooling_kernel, use_max, alpha, max_kept=None):
        lengths = np.array([len(s) for s in scores], np.int32)
        padded = np.full((_HEADS, lengths.max() + 9), np.nan, np.float32)
        for row, s in zip(padded, scores):
            row[: len(s)] = s
        kept = np.full((_HEADS, max_kept or padded.shape[1]), -1, np.int32)
        counts = np.full(_HEADS, -1, np.int32)
        options = capacity, tail, pooling_kernel, int(use_max), int(alpha is not None), alpha or 0.0
        kernel(padded, lengths, kept, counts, *options)
        assert np.all(kept[np.arange(kept.shape[1]) >= counts[:, None]] == -1)
        return [row[:count] for row, count in zip(kept, counts)]

    return call


def _check(select, scores, capacity, tail, pooling_kernel, use_max, alpha):
    actual = select(scores, capacity, tail, pooling_kernel, use_max, alpha)
    expected = compression_oracle.kept_entries(scores, capacity, tail, pooling_kernel, use_max, alpha)
    for a, e in zip(actual, expected):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("alpha", _ALPHAS)
def test_select_entries(select, alpha):
    rng = np.random.default_rng(0)
    for lengths, pooling_kernel, use_max in (
        ([2000, 1500, 1501], 5, False),
        ([300, 63, 70], 7, True),
        ([64, 65, 64], 1, False),
        ([0, 1, 500], 7, False),
        ([66, 67, 68], 5, True),
    ):
        # A power of a uniform deviate: a few large scores, as a softmax gives; heads of different weight.
        scores = [
            (np.floor(rng.uniform(0, 1, n) ** 4 * 2**17 / (h + 1)) * 2.0**-20).astype(np.float32)
            for h, n in enumerate(lengths)
        ]
        for capacity in (_TAIL, 65, 128, 1024, 10000):
            _check(select, scores, capacity, _TAIL, pooling_kernel, use_max, alpha)


@pytest.mark.parametrize("alpha", _ALPHAS)
def test_ties_go_to_the_lower_entry_and_head(select, alpha):
    rng = np.random.default_rng(1)
    with emulated_cuda.thread_order("backward"):
        for levels in (1, 2, 5):
            scores = [(rng.integers(0, levels, n) * 2.0**-20).astype(np.float32) for n in (400, 333, 1000)]
            for tail, (pooling_kernel, use_max) in itertools.product((0, 32), ((1, False), (7, True))):
                _check(select, scores, 200, tail, pooling_kernel, use_max, alpha)


def test_adakv_takes_from_flat_heads_what_peaked_heads_do_not_need(select):
    """One head has all the large scores: with a floor of 20 % the others keep 0.2 * 36 = 7 entries below the tail."""
    scores = [np.full(500, value, np.float32) for value in (2.0**-20, 2.0**-3, 2.0**-20)]
    kept = select(scores, 100, 64, 1, True, 0.2)
    assert [len(entries) - 64 for entries in kept] == [7, round(108 * 0.8) + 7, 7]


def test_lists_that_might_not_fit_are_an_error(select):
    scores = [np.ones(300, np.float32)] * _HEADS
    assert [len(entries) for entries in select(scores, 100, 64, 1, True, None, max_kept=100)] == [100] * 3
    with pytest.raises(Exception, match="max_kept"):
        select(scores, 100, 64, 1, True, None, max_kept=99)
    with pytest.raises(Exception, match="max_kept"):
        select(scores, 100, 64, 1, True, 0.2, max_kept=64 + 3 * 36 - 1)
