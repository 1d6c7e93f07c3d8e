import pytest
import tvm
from compiled import compiled, on_arrays
from row_tile_cases import ROW_TILE_CASES, make_tiles

from tir_kernels.cpu.row_tiles import row_tiles


@pytest.mark.parametrize(("segment_size", "tables", "tiles"), ROW_TILE_CASES)
def test_row_tiles(segment_size, tables, tiles):
    kernel = on_arrays(compiled(row_tiles(segment_size), tvm.target.Target("llvm")))
    assert make_tiles(kernel, tables, len(tiles[0])) == tiles
