"""Linear layers on NVIDIA's tensor cores: mma.sync m16n8k16 of 16-bit activations and weights, for many rows.

A block makes 128 x 128 outputs, a warp 64 x 32; linear_pipeline.py brings what they are made of.
"""

from tvm.script import tirx as T

from .linear_pipeline import LinearPipeline
from .linear_tile import DEPTH, LinearTile
from .register import register

_MMA_TYPES = {"float16": "f16", "bfloat16": "bf16"}
_DEPTH = 16  # input features of a product


def _place(i: int, j: int, half: int) -> int:
    return (i * MMATile.column_tiles + j) * 4 + half * 2


class MMATile(LinearTile):
    tile, threads = 128, 256
    warp_rows, warp_columns = 64, 32
    row_tiles, column_tiles = warp_rows // 16, warp_columns // 8
    dtypes = tuple(_MMA_TYPES)

    def start(self) -> None:
        name = _MMA_TYPES[self.dtype]
        self.mma = T.ptx[f"mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32"]
        self.ldmatrix = T.ptx["ldmatrix.sync.aligned.m8n8.x4.shared.b16"]
        self.sums = T.alloc_buffer((self.row_tiles * self.column_tiles * 4,), "float32", scope="local")
        self.x_words = T.alloc_buffer((self.row_tiles * 4,), "uint32", scope="local")
        self.w_words = T.alloc_buffer((self.column_tiles * 2,), "uint32", scope="local")
        self.group, self.pair = self.lane // 4, self.lane % 4
        for i in range(self.row_tiles * self.column_tiles * 4):
            T.buffer_store(self.sums, T.float32(0), [i])

    def multiply_steps(self) -> None:
        # Lanes 8 * i to 8 * i + 7 of an ldmatrix have the addresses of the rows of matrix i. Its four are the words of
        # an A operand in order (8 rows, 8 rows on, both 8 input features on), or the B operands of two products.
        matrix, row = self.lane // 8, self.lane % 8
        x_place = LinearPipeline.place(self.warp_row + matrix % 2 * 8 + row, matrix // 2)
        w_place = LinearPipeline.place(self.warp_column + matrix // 2 * 8 + row, matrix % 2)
        pipeline = LinearPipeline(self, x_place, w_place)
        pipeline.begin()
        with T.serial(self.steps) as step:
            pipeline.arrive(step)
            for depth in range(0, DEPTH, _DEPTH):
                for i in range(self.row_tiles):
                    self._load(self.x_words, i, pipeline.x_address(i * 16, depth))
                for i in range(self.column_tiles // 2):
                    self._load(self.w_words, i, pipeline.w_address(i * 16, depth))
                if depth == DEPTH - _DEPTH:
                    # Its stores may not pass loads, so it stands behind the last; its arithmetic mixes with products.
                    pipeline.prepare(step + 1)
                self._multiply()

    def _load(self, words: T.Buffer, i: int, address) -> None:
        T.evaluate(self.ldmatrix(*(words[i * 4 + word] for word in range(4)), address))

    def _multiply(self) -> None:
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
