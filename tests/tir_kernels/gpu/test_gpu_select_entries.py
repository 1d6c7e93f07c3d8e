"""kv_select_entries on a GPU against the published formulas, ties included."""

import itertools

import numpy as np
import pytest
from compression_steps import check_selected, peaked_scores, selected
from gpu import emulated_cuda

from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.select_entries import select_entries

_HEADS = 3
_TAIL = 64
_ALPHAS = (None, 0.0, 0.2, 0.5)


@pytest.fixture(scope="module")
def kernel():
    return emulated_cuda.compile(select_entries(_HEADS, gpu_features(emulated_cuda.target())))


@pytest.mark.parametrize("alpha", _ALPHAS)
def test_select_entries(kernel, alpha):
    rng = np.random.default_rng(0)
    for lengths, pooling_kernel, use_max in (
        ([2000, 1500, 1501], 5, False),
        ([300, 63, 70], 7, True),
        ([64, 65, 64], 1, False),
        ([0, 1, 500], 7, False),
        ([66, 67, 68], 5, True),
    ):
        scores = peaked_scores(rng, lengths)
        for capacity in (_TAIL, 65, 128, 1024, 10000):
            check_selected(kernel, scores, capacity, _TAIL, pooling_kernel, use_max, alpha)


@pytest.mark.parametrize("alpha", _ALPHAS)
def test_ties_go_to_the_lower_entry_and_head(kernel, alpha):
    rng = np.random.default_rng(1)
    with emulated_cuda.thread_order("backward"):
        for levels in (1, 2, 5):
            scores = [(rng.integers(0, levels, n) * 2.0**-20).astype(np.float32) for n in (400, 333, 1000)]
            for tail, (pooling_kernel, use_max) in itertools.product((0, 32), ((1, False), (7, True))):
                check_selected(kernel, scores, 200, tail, pooling_kernel, use_max, alpha)


def test_adakv_takes_from_flat_heads_what_peaked_heads_do_not_need(kernel):
    """One head has all the large scores: with a floor of 20 % the others keep 0.2 * 36 = 7 entries below the tail."""
    scores = [np.full(500, value, np.float32) for value in (2.0**-20, 2.0**-3, 2.0**-20)]
    kept = selected(kernel, scores, 100, 64, 1, True, 0.2)
    assert [len(entries) - 64 for entries in kept] == [7, round(108 * 0.8) + 7, 7]


def test_lists_that_might_not_fit_are_an_error(kernel):
    scores = [np.ones(300, np.float32)] * _HEADS
    assert [len(entries) for entries in selected(kernel, scores, 100, 64, 1, True, None, max_kept=100)] == [100] * 3
    with pytest.raises(Exception, match="max_kept"):
        selected(kernel, scores, 100, 64, 1, True, None, max_kept=99)
    with pytest.raises(Exception, match="max_kept"):
        selected(kernel, scores, 100, 64, 1, True, 0.2, max_kept=64 + 3 * 36 - 1)
