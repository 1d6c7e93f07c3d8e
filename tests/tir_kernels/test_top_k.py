"""top_k inside a small kernel against a stable sort; and over two rows at once, for a budget that heads share."""

import numpy as np
import pytest
import tvm
from compiled import compiled
from tvm.script import tirx as T

from tir_kernels.cpu.scratch import stack_buffer
from tir_kernels.cpu.top_k import top_k


def _one_row(isa):
    """(scores [n], range int32 [3] of (first, end, k), lists int32 [n + 1], written int32 [1])."""
    best = top_k(isa)

    @T.prim_func(s_tir=True)
    def one_row(scores_handle: T.handle, range_handle: T.handle, lists_handle: T.handle, written_handle: T.handle):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int64()
        scores = T.match_buffer(scores_handle, (2, n), "float32")
        bounds = T.match_buffer(range_handle, (3,), "int32")
        lists = T.match_buffer(lists_handle, (2, n), "int32")
        written = T.match_buffer(written_handle, (1,), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            with isa.helpers():
                first: T.let = T.cast(bounds[0], "int64")
                end: T.let = T.cast(bounds[1], "int64")
                best.append_top_k(scores, (1,), first, end, bounds[2], lists, (1,), written)

    return one_row


def _two_rows(isa):
    """(scores [2, n], k int32 [1], lists int32 [2, n], counts int32 [2]): the k best of both rows, ties row by row."""
    best = top_k(isa)

    @T.prim_func(s_tir=True)
    def two_rows(scores_handle: T.handle, k_handle: T.handle, lists_handle: T.handle, counts_handle: T.handle):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int32()
        scores = T.match_buffer(scores_handle, (2, n), "float32")
        k = T.match_buffer(k_handle, (1,), "int32")
        lists = T.match_buffer(lists_handle, (2, n), "int32")
        counts = T.match_buffer(counts_handle, (2,), "int32")

        @T.inline
        def count(value, total):
            for row in T.serial(2):
                best.count_at_least(scores, (row,), 0, n, value, total)

        with T.sblock("root"):
            T.reads()
            T.writes()
            with isa.helpers():
                bounds = stack_buffer(2)
                num_above = stack_buffer(1, "int32")
                num_ties = stack_buffer(1, "int32")
                written = stack_buffer(1, "int32")
                best.kth_largest(count, k[0], bounds)
                num_above[0] = 0
                count(bounds[1], num_above)
                num_ties[0] = k[0] - num_above[0]
                for row in T.serial(2):
                    written[0] = 0
                    best.append_at_least(scores, (row,), 0, n, bounds, num_ties, lists, (row,), written)
                    counts[row] = written[0]

    return two_rows


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Ascending indices of the k largest, ties to the lower index."""
    return np.sort(np.argsort(-scores, kind="stable")[: max(k, 0)])


def _rows(rng) -> list[np.ndarray]:
    return [
        rng.standard_normal(4099),
        rng.standard_normal(3),
        np.concatenate([np.zeros(70), -np.zeros(70), [1, -1, 2]])[rng.permutation(143)],
        rng.integers(-3, 3, 777) * 1.0,
        np.full(50, -np.inf),
        np.concatenate([np.full(33, -np.inf), [0.0, 1e-40, np.inf, np.inf, 3e38], np.full(20, np.inf)]),
        400 + 1e-4 * rng.standard_normal(1000),
        rng.standard_normal(200_000) * 1e-20,
    ]


def test_top_k(isa_target):
    target, isa = isa_target
    rng = np.random.default_rng(0)
    kernel = compiled(_one_row(isa), target)
    for scores in _rows(rng):
        scores = scores.astype(np.float32)
        n = len(scores)
        for first, end in ((0, n), (1, n - 1), (n // 2, n // 2)):
            for k in {0, -3, 1, 2, (end - first) // 3, end - first - 1, end - first, n + 5}:
                lists = tvm.runtime.tensor(np.full((2, n), -7, np.int32))
                written = tvm.runtime.tensor(np.zeros(1, np.int32))
                rows = tvm.runtime.tensor(np.stack([np.full(n, np.nan, np.float32), scores]))
                kernel(rows, tvm.runtime.tensor(np.array([first, end, k], np.int32)), lists, written)
                expected = first + _best(scores[first:end], k)
                assert written.numpy()[0] == len(expected)
                np.testing.assert_array_equal(lists.numpy()[1, : len(expected)], expected)
                assert np.all(lists.numpy()[1, len(expected) :] == -7)


def test_appends_after_what_is_written(isa_target):
    target, isa = isa_target
    scores = np.array([[np.nan] * 6, [5, 1, 4, 4, 9, 4]], np.float32)
    lists = tvm.runtime.tensor(np.full((2, 6), -7, np.int32))
    written = tvm.runtime.tensor(np.array([2], np.int32))
    bounds = tvm.runtime.tensor(np.array([0, 6, 3], np.int32))
    compiled(_one_row(isa), target)(tvm.runtime.tensor(scores), bounds, lists, written)
    np.testing.assert_array_equal(lists.numpy(), [[-7] * 6, [-7, -7, 0, 2, 4, -7]])
    assert written.numpy()[0] == 5


@pytest.mark.parametrize("k", [1, 400, 1500, 2006])
def test_one_budget_for_two_rows(isa_target, k):
    target, isa = isa_target
    rng = np.random.default_rng(1)
    scores = np.stack([rng.integers(0, 40, 1003), rng.integers(20, 60, 1003)]).astype(np.float32)
    lists = tvm.runtime.tensor(np.zeros((2, 1003), np.int32))
    counts = tvm.runtime.tensor(np.zeros(2, np.int32))
    budget = tvm.runtime.tensor(np.array([k], np.int32))
    compiled(_two_rows(isa), target)(tvm.runtime.tensor(scores), budget, lists, counts)
    expected = _best(scores.ravel(), k)
    for row in range(2):
        chosen = expected[expected // 1003 == row] % 1003
        np.testing.assert_array_equal(lists.numpy()[row, : counts.numpy()[row]], chosen)
