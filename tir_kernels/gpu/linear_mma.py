"""Linear layers on NVIDIA's tensor cores: mma.sync m16n8k16 of 16-bit activations and weights, for many rows.

A block makes 128 x 128 outputs, a warp 64 x 32.
"""

from tvm.script import tirx as T

from .linear_tile import DEPTH, LinearTile
from .register import register

_MMA_TYPES = {"float16": "f16", "bfloat16": "bf16"}


def _place(i: int, j: int, half: int) -> int:
    return (i * MMATile.column_tiles + j) * 4 + half * 2


class MMATile(LinearTile):
    tile, threads, stages = 128, 256, 2
    warp_rows, warp_columns = 64, 32
    lanes = 8  # 16 bytes
    row_tiles, column_tiles = warp_rows // 16, warp_columns // 8
    dtypes = tuple(_MMA_TYPES)

    def start(self) -> None:
        name = _MMA_TYPES[self.dtype]
        self.mma = T.ptx[f"mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32"]
        self.sums = T.alloc_buffer((self.row_tiles * self.column_tiles * 4,), "float32", scope="local")
        self.x_words = T.alloc_buffer((self.row_tiles * 4,), "uint32", scope="local")
        self.w_words = T.alloc_buffer((self.column_tiles * 2,), "uint32", scope="local")
        self.group, self.pair = self.lane // 4, self.lane % 4
        for i in range(self.row_tiles * self.column_tiles * 4):
            T.buffer_store(self.sums, T.float32(0), [i])

    def multiply(self, stage) -> None:
        def word(staged, row, depth):
            return T.reinterpret("uint32", staged[T.ramp(self.place(stage, row, depth), 1, 2)])

        for depth in range(0, DEPTH, 16):
            for later in range(2):
                column = depth + later * 8 + self.pair * 2
                for i in range(self.row_tiles):
                    for half in range(2):
                        row = self.warp_row + i * 16 + half * 8 + self.group
                        T.buffer_store(self.x_words, word(self.x_stage, row, column), [i * 4 + later * 2 + half])
                for j in range(self.column_tiles):
                    row = self.warp_column + j * 8 + self.group
                    T.buffer_store(self.w_words, word(self.w_stage, row, column), [j * 2 + later])
            for i in range(self.row_tiles):
                for j in range(self.column_tiles):
                    sums = [self.sums[_place(i, j, half) + e] for half in range(2) for e in range(2)]
                    x = [self.x_words[i * 4 + word] for word in range(4)]
                    w = [self.w_words[j * 2 + word] for word in range(2)]
                    T.evaluate(self.mma(*sums, *x, *w, *sums))

    def finish(self) -> None:
        width = 2 if self.n % 2 == 0 else 1
        for i in range(self.row_tiles):
            for half in range(2):
                row = register(self.row0 + self.warp_row + i * 16 + half * 8 + self.group, "int64")
                with T.If(row < self.m), T.Then():
                    for j in range(self.column_tiles):
                        for e in range(0, 2, width):
                            column = self.column0 + self.warp_column + j * 8 + self.pair * 2 + e
                            with T.If(column < self.n), T.Then():
                                self.store(row, column, self.sums, _place(i, j, half) + e, width)
