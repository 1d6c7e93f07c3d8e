import numpy as np
import tvm

from tir_kernels.cpu.row_tiles import row_tiles


def run(segment_size, tables, columns):
    kernel = tvm.compile(tvm.IRModule({"main": row_tiles(segment_size).with_attr("global_symbol", "main")}), "llvm")
    tiles = tvm.runtime.tensor(np.full((len(tables[0]), columns), 99, "int32"))
    kernel["main"](*(tvm.runtime.tensor(np.array(table, "int32")) for table in tables), tiles)
    return tiles.numpy().tolist()


def test_rows_of_a_ragged_batch():
    rows, query_indptr = [4, 5, 0, 9, 5], [0, 5, 6, 10]
    assert run(None, (rows, query_indptr), 2) == [[0, 4], [1, 0], [0, 0], [2, 3], [1, 0]]


def test_rows_outside_the_step_are_the_nearest():
    assert run(None, ([-3, 10, 2**31 - 1], [0, 5, 10]), 2) == [[0, 0], [1, 4], [1, 4]]
    assert run(None, ([2**31 - 1], [0, 7]), 2) == [[0, 6]]


def test_rows_of_gated_segments():
    """Sequence 0 has an observed and two gated segments, sequence 1 a gated one behind 4 rows of another segment."""
    segments = [(0, 0, 3, 0, 0), (0, 8, 4, 0, 1), (0, 16, 5, 0, 1), (1, 4, 6, 0, 1)]
    rows = [0, 7, 8, 15, 16, 23, 24, 25, 28, 29, 36, 37]
    tiles = run(8, (rows, [0, 25, 38], segments), 4)
    assert tiles == [
        [0, 0, 1, -1],
        [0, 7, 1, -1],
        [0, 8, 1, 1],
        [0, 15, 1, 1],
        [0, 16, 1, 2],
        [0, 23, 1, 2],
        [0, 24, 1, -1],
        [1, 0, 1, -1],
        [1, 3, 1, -1],
        [1, 4, 1, 3],
        [1, 11, 1, 3],
        [1, 12, 1, -1],
    ]


def test_without_segments():
    assert run(8, ([6], [0, 7], np.zeros((0, 5))), 4) == [[0, 6, 1, -1]]
