"""Linear layers on Apple's simdgroup matrices: 8 x 8 float16 operands, float32 sums, for many rows.

A block makes 64 x 64 outputs, a simdgroup 32 x 32. That Apple's compiler multiplies float16 matrices into float32 sums
is what llama.cpp's kernels rest on; nothing here could try it.
"""

from tvm.script import tirx as T

from .linear_tile import DEPTH, STRIDE, LinearTile
from .register import register
from .simdgroup_matrices import EDGE, clear, load, matrices, multiply_add, store


class SimdgroupTile(LinearTile):
    tile, threads = 64, 128
    warp_rows, warp_columns = 32, 32
    stages = 1  # there are no asynchronous copies to overlap: other blocks fill the time, and need the memory
    lanes = 4  # Metal's longest vector
    row_tiles, column_tiles = warp_rows // EDGE, warp_columns // EDGE
    dtypes = ("float16",)

    def start(self) -> None:
        self.sums = matrices(self.row_tiles * self.column_tiles, "float32")
        self.x_matrices = matrices(self.row_tiles, self.dtype)
        self.w_matrices = matrices(self.column_tiles, self.dtype)
        self.patches = T.alloc_buffer((self.threads // 32 * EDGE * self.warp_columns,), "float32", scope="shared")
        for i in range(self.row_tiles * self.column_tiles):
            clear(self.sums, i)

    def multiply(self, stage) -> None:
        for depth in range(0, DEPTH, EDGE):
            for i in range(self.row_tiles):
                place = self.place(stage, self.warp_row + i * EDGE, depth)
                load(self.x_matrices, i, self.x_stage, place, STRIDE)
            for j in range(self.column_tiles):
                place = self.place(stage, self.warp_column + j * EDGE, depth)
                load(self.w_matrices, j, self.w_stage, place, STRIDE, transposed=True)
            for i in range(self.row_tiles):
                for j in range(self.column_tiles):
                    place = i * self.column_tiles + j
                    multiply_add(self.sums, place, self.x_matrices, i, self.w_matrices, j, self.sums, place)

    def finish(self) -> None:
        """Only the hardware knows which lane has which sum: they go through threadgroup memory, 8 rows at a time."""
        width = 4 if self.n % 4 == 0 else 1
        vectors = self.warp_columns // width
        patch0 = self.warp * (EDGE * self.warp_columns)
        for i in range(self.row_tiles):
            for j in range(self.column_tiles):
                store(self.sums, i * self.column_tiles + j, self.patches, patch0 + j * EDGE, self.warp_columns)
            T.evaluate(T.tvm_storage_sync("warp"))
            for first in range(0, EDGE * vectors, 32):
                row = register((self.lane + first) // vectors)
                column = register((self.lane + first) % vectors * width)
                out_row = register(self.row0 + self.warp_row + i * EDGE + row, "int64")
                out_column = register(self.column0 + self.warp_column + column)
                with T.If(T.And(out_row < self.m, out_column < self.n)), T.Then():
                    self.store(out_row, out_column, self.patches, patch0 + row * self.warp_columns + column, width)
            T.evaluate(T.tvm_storage_sync("warp"))
