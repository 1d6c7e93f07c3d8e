import pytest
from gpu import emulated_cuda
from row_tile_cases import ROW_TILE_CASES, make_tiles

from tir_kernels.gpu.row_tiles import row_tiles


@pytest.mark.parametrize(("segment_size", "tables", "tiles"), ROW_TILE_CASES)
def test_row_tiles(segment_size, tables, tiles):
    assert make_tiles(emulated_cuda.compile(row_tiles(segment_size)), tables, len(tiles[0])) == tiles
