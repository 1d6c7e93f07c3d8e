"""top_k by the threads of a block, inside a small kernel, against a stable sort; and over two rows at once."""

import numpy as np
import pytest
from gpu import emulated_cuda
from tvm.script import tirx as T

from tir_kernels.gpu.top_k import top_k

_THREADS = 128


def _one_row():
    """(scores [2, n], range int32 [3] of (first, end, k), lists int32 [2, n + 2]): row 1, written from index 2 on."""
    best = top_k(_THREADS)

    @T.prim_func(s_tir=True)
    def one_row(scores_handle: T.handle, range_handle: T.handle, lists_handle: T.handle):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int32()
        scores = T.match_buffer(scores_handle, (2, n), "float32")
        bounds = T.match_buffer(range_handle, (3,), "int32")
        lists = T.match_buffer(lists_handle, (2, n + 2), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            with T.launch_thread("threadIdx.x", _THREADS) as thread:
                shared = T.meta_var(best.scratch())
                best.append_top_k(shared, scores, (1,), bounds[0], bounds[1], thread, bounds[2], lists, (1,), 2)

    return one_row


def _two_rows():
    """(scores [2, n], k int32 [1], lists int32 [2, n]): the k best of both rows, ties to the first row."""
    best = top_k(_THREADS)

    @T.prim_func(s_tir=True)
    def two_rows(scores_handle: T.handle, k_handle: T.handle, lists_handle: T.handle):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int32()
        scores = T.match_buffer(scores_handle, (2, n), "float32")
        k = T.match_buffer(k_handle, (1,), "int32")
        lists = T.match_buffer(lists_handle, (2, n), "int32")

        with T.sblock("root"):
            T.reads()
            T.writes()
            with T.launch_thread("threadIdx.x", _THREADS) as thread:
                shared = T.meta_var(best.scratch())
                found = T.alloc_buffer((2,), "int32", scope="local")
                counts = T.alloc_buffer((2,), "int32", scope="local")

                @T.inline
                def tally(candidates, counts):
                    for row in T.serial(2):
                        best.tally(scores, (row,), 0, n, thread, candidates, counts)

                best.kth_largest(shared, thread, tally, k[0], found)
                best.count(shared, scores, (0,), 0, n, thread, found, counts)
                best.append(shared, scores, (0,), 0, n, thread, k[0], found, lists, (0,), 0)
                # What the first row has of the values above and of the ties is no longer to be had.
                best.append(
                    shared, scores, (1,), 0, n, thread, k[0] - T.min(counts[1], k[0] - found[1]), found, lists, (1,), 0
                )

    return two_rows


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Ascending indices of the k largest, ties to the lower index."""
    return np.sort(np.argsort(-scores, kind="stable")[: max(k, 0)])


def _rows(rng) -> list[np.ndarray]:
    return [
        rng.standard_normal(1500),
        rng.standard_normal(3),
        np.concatenate([np.zeros(70), -np.zeros(70), [1, -1, 2]])[rng.permutation(143)],
        rng.integers(-3, 3, 777) * 1.0,
        np.full(50, -np.inf),
        np.concatenate([np.full(33, -np.inf), [0.0, 1e-40, np.inf, np.inf, 3e38], np.full(20, np.inf)]),
        400 + 1e-4 * rng.standard_normal(1000),
        rng.standard_normal(1000) * 1e-20,
    ]


@pytest.fixture(scope="module")
def one_row():
    return emulated_cuda.compile(_one_row())


def test_top_k(one_row):
    rng = np.random.default_rng(0)
    for scores in _rows(rng):
        scores = scores.astype(np.float32)
        n = len(scores)
        for first, end in ((0, n), (1, n - 1), (n // 2, n // 2)):
            for k in {0, -3, 1, 2, (end - first) // 3, end - first - 1, end - first, n + 5}:
                lists = np.full((2, n + 2), -7, np.int32)
                rows = np.stack([np.full(n, np.nan, np.float32), scores])
                one_row(rows, np.array([first, end, k], np.int32), lists)
                expected = first + _best(scores[first:end], k)
                np.testing.assert_array_equal(lists[1, 2 : 2 + len(expected)], expected)
                assert np.all(lists[1, 2 + len(expected) :] == -7) and np.all(lists[1, :2] == -7)


@pytest.mark.parametrize("order", ["backward", 3])
def test_order_of_threads_does_not_matter(one_row, order):
    scores = np.random.default_rng(2).integers(-3, 3, (2, 500)).astype(np.float32)
    lists = np.full((2, 502), -7, np.int32)
    with emulated_cuda.thread_order(order):
        one_row(scores, np.array([0, 500, 200], np.int32), lists)
    np.testing.assert_array_equal(lists[1, 2:202], _best(scores[1], 200))


@pytest.mark.parametrize("k", [1, 400, 1500, 2006])
def test_one_budget_for_two_rows(k):
    rng = np.random.default_rng(1)
    scores = np.stack([rng.integers(0, 40, 1003), rng.integers(20, 60, 1003)]).astype(np.float32)
    lists = np.full((2, 1003), -7, np.int32)
    emulated_cuda.compile(_two_rows())(scores, np.array([k], np.int32), lists)
    expected = _best(scores.ravel(), k)
    for row in range(2):
        chosen = expected[expected // 1003 == row] % 1003
        np.testing.assert_array_equal(lists[row, : len(chosen)], chosen)
        assert np.all(lists[row, len(chosen) :] == -7)
