"""What row_tiles has to do: (segment_size, tables, tiles)."""

import numpy as np
import pytest

_QUERY_INDPTR = [0, 5, 6, 10]
# Sequence 0 has an observed and two gated segments, sequence 1 a gated one behind 4 rows of another segment.
_SEGMENTS = [(0, 0, 3, 0, 0), (0, 8, 4, 0, 1), (0, 16, 5, 0, 1), (1, 4, 6, 0, 1)]
_ROWS = [0, 7, 8, 15, 16, 23, 24, 25, 28, 29, 36, 37]
_SEQUENCES = [0] * 7 + [1] * 5
_SEGMENT_OF_ROW = [-1, -1, 1, 1, 2, 2, -1, -1, -1, 3, 3, -1]

ROW_TILE_CASES = [
    pytest.param(
        None, ([4, 5, 0, 9, 5], _QUERY_INDPTR), [[0, 4], [1, 0], [0, 0], [2, 3], [1, 0]], id="rows of a ragged batch"
    ),
    pytest.param(None, ([-3, 10, 2**31 - 1], [0, 5, 10]), [[0, 0], [1, 4], [1, 4]], id="rows outside the step"),
    pytest.param(None, ([2**31 - 1], [0, 7]), [[0, 6]], id="a row outside of one sequence"),
    pytest.param(
        8,
        (_ROWS, [0, 25, 38], _SEGMENTS),
        [[b, row - 25 * b, 1, segment] for b, row, segment in zip(_SEQUENCES, _ROWS, _SEGMENT_OF_ROW)],
        id="rows of gated segments",
    ),
    pytest.param(8, ([6], [0, 7], np.zeros((0, 5))), [[0, 6, 1, -1]], id="without segments"),
]


def make_tiles(kernel, tables, columns: int) -> list[list[int]]:
    """``kernel`` is a row_tiles as a function of numpy arrays."""
    tiles = np.full((len(tables[0]), columns), 99, np.int32)
    kernel(*(np.array(table, np.int32) for table in tables), tiles)
    return tiles.tolist()
