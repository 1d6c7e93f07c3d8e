"""Linear layers on Apple's simdgroup matrices: 8 x 8 float16 operands, float32 sums, for many rows.

A block makes 64 x 64 outputs, a simdgroup 32 x 32. That Apple's compiler multiplies float16 matrices into float32 sums
is what llama.cpp's kernels rest on; nothing here could try it.
"""

from tvm.script import tirx as T

from .linear_tile import DEPTH, STRIDE, LinearTile
from .register import register

_EDGE = 8  # of a matrix
_SIZE = _EDGE * _EDGE


class SimdgroupTile(LinearTile):
    tile, threads = 64, 128
    warp_rows, warp_columns = 32, 32
    stages = 1  # there are no asynchronous copies to overlap: other blocks fill the time, and need the memory
    lanes = 4  # Metal's longest vector
    row_tiles, column_tiles = warp_rows // _EDGE, warp_columns // _EDGE
    dtypes = ("float16",)

    def start(self) -> None:
        scope = "metal.simdgroup"
        self.sums = T.alloc_buffer((self.row_tiles * self.column_tiles * _SIZE,), "float32", scope=scope)
        self.x_matrices = T.alloc_buffer((self.row_tiles * _SIZE,), self.dtype, scope=scope)
        self.w_matrices = T.alloc_buffer((self.column_tiles * _SIZE,), self.dtype, scope=scope)
        patches = self.threads // 32 * _EDGE * self.warp_columns
        self.patches = T.alloc_buffer((patches,), "float32", scope="shared")
        for i in range(self.row_tiles * self.column_tiles):
            T.evaluate(T.metal.make_filled_simdgroup_matrix(self.sums.data, i, T.float32(0), _EDGE, _EDGE))

    def multiply(self, stage) -> None:
        def load(matrices, i, staged, row, depth, transposed: bool) -> None:
            source = T.address_of(staged[self.place(stage, row, depth)])
            T.evaluate(T.metal.simdgroup_load(matrices.data, i, source, STRIDE, _EDGE, _EDGE, transposed))

        sums, x, w = self.sums.data, self.x_matrices.data, self.w_matrices.data
        for depth in range(0, DEPTH, _EDGE):
            for i in range(self.row_tiles):
                load(self.x_matrices, i, self.x_stage, self.warp_row + i * _EDGE, depth, False)
            for j in range(self.column_tiles):
                load(self.w_matrices, j, self.w_stage, self.warp_column + j * _EDGE, depth, True)
            for i in range(self.row_tiles):
                for j in range(self.column_tiles):
                    place = i * self.column_tiles + j
                    T.evaluate(T.metal.simdgroup_multiply_accumulate(sums, place, x, i, w, j, sums, place))

    def finish(self) -> None:
        """Only the hardware knows which lane has which sum: they go through threadgroup memory, 8 rows at a time."""
        width = 4 if self.n % 4 == 0 else 1
        vectors = self.warp_columns // width
        patch0 = self.warp * (_EDGE * self.warp_columns)
        for i in range(self.row_tiles):
            for j in range(self.column_tiles):
                target = T.address_of(self.patches[patch0 + j * _EDGE])
                place = i * self.column_tiles + j
                T.evaluate(
                    T.metal.simdgroup_store(self.sums.data, place, target, self.warp_columns, _EDGE, _EDGE, False)
                )
            T.evaluate(T.tvm_storage_sync("warp"))
            for first in range(0, _EDGE * vectors, 32):
                row = register((self.lane + first) // vectors)
                column = register((self.lane + first) % vectors * width)
                out_row = register(self.row0 + self.warp_row + i * _EDGE + row, "int64")
                out_column = register(self.column0 + self.warp_column + column)
                with T.If(T.And(out_row < self.m, out_column < self.n)), T.Then():
                    self.store(out_row, out_column, self.patches, patch0 + row * self.warp_columns + column, width)
            T.evaluate(T.tvm_storage_sync("warp"))
