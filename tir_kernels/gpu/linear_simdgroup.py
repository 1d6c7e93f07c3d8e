"""Linear layers on Apple's simdgroup matrices: 8 x 8 float16 operands, float32 sums, for many rows.

A block makes 64 x 64 outputs, a simdgroup 32 x 32. There are no asynchronous copies: while a step is multiplied from
threadgroup memory, the next one is on its way to registers, and other blocks fill the rest of the time. That Apple's
compiler multiplies float16 matrices into float32 sums is what llama.cpp's kernels rest on; nothing here could try it.
"""

from tvm.script import tirx as T

from tir_kernels.mlc_weights import CODES_PER_WORD

from .linear_tile import DEPTH, LinearTile
from .register import register
from .simdgroup_matrices import EDGE, clear, load, matrices, multiply_add, store

_STRIDE = DEPTH + 8  # elements of a row in threadgroup memory: the 8 rows that are read at once lie in all banks
_COPY = CODES_PER_WORD  # elements that a thread copies at once, of 4-bit weights a word
_LANES = 4  # Metal's longest vector


class SimdgroupTile(LinearTile):
    tile, threads = 64, 128
    warp_rows, warp_columns = 32, 32
    row_tiles, column_tiles = warp_rows // EDGE, warp_columns // EDGE
    dtypes = ("float16",)
    copies = tile * DEPTH // _COPY // threads  # of a thread, for each of the two operands

    def start(self) -> None:
        self.sums = matrices(self.row_tiles * self.column_tiles, "float32")
        self.x_matrices = matrices(self.row_tiles, self.dtype)
        self.w_matrices = matrices(self.column_tiles, self.dtype)
        self.patches = T.alloc_buffer((self.threads // 32 * EDGE * self.warp_columns,), "float32", scope="shared")
        for i in range(self.row_tiles * self.column_tiles):
            clear(self.sums, i)

    def multiply_steps(self) -> None:
        size = self.tile * _STRIDE
        self.x_stage, self.w_stage = (T.alloc_buffer((size,), self.dtype, scope="shared") for _ in range(2))
        self.x_next = T.alloc_buffer((self.copies * _COPY,), self.dtype, scope="local")
        if self.is_plain:
            self.w_next = T.alloc_buffer((self.copies * _COPY,), self.dtype, scope="local")
        else:
            self.w_next = T.alloc_buffer((self.copies,), "uint32", scope="local")
            self.scales = T.alloc_buffer((self.copies,), self.dtype, scope="local")
        self._load(0)
        self._stage()
        T.evaluate(T.tvm_storage_sync("shared"))
        with T.serial(self.steps) as step:
            with T.If(step + 1 < self.steps), T.Then():
                self._load(step + 1)
            self._multiply()
            T.evaluate(T.tvm_storage_sync("shared"))
            with T.If(step + 1 < self.steps), T.Then():
                self._stage()
            T.evaluate(T.tvm_storage_sync("shared"))

    def _multiply(self) -> None:
        for depth in range(0, DEPTH, EDGE):
            for i in range(self.row_tiles):
                load(self.x_matrices, i, self.x_stage, (self.warp_row + i * EDGE) * _STRIDE + depth, _STRIDE)
            for j in range(self.column_tiles):
                place = (self.warp_column + j * EDGE) * _STRIDE + depth
                load(self.w_matrices, j, self.w_stage, place, _STRIDE, transposed=True)
            for i in range(self.row_tiles):
                for j in range(self.column_tiles):
                    place = i * self.column_tiles + j
                    multiply_add(self.sums, place, self.x_matrices, i, self.w_matrices, j, self.sums, place)

    def _vectors(self) -> list[tuple]:
        """(i, row, vector) of every vector of a tile's step that this thread copies."""
        places = [self.thread + i * self.threads for i in range(self.copies)]
        return [(i, place // (DEPTH // _COPY), place % (DEPTH // _COPY)) for i, place in enumerate(places)]

    def _load(self, step) -> None:
        """Asks for a step."""
        for i, row, vector in self._vectors():
            column = step * DEPTH + vector * _COPY
            x_row, w_row = self.x_row(row), self.w_row(row)
            _copy(self.x_next, i * _COPY, self.buffers["x"], column, x_row)
            if self.is_plain:
                _copy(self.w_next, i * _COPY, self.buffers["weight"], column, w_row)
            else:
                word = self.buffers["q_weight"][w_row, step * (DEPTH // CODES_PER_WORD) + vector]
                T.buffer_store(self.w_next, word, [i])
                T.buffer_store(self.scales, self.buffers["q_scale"][w_row, step], [i])

    def _stage(self) -> None:
        """Puts what was asked for into threadgroup memory."""
        for i, row, vector in self._vectors():
            place = row * _STRIDE + vector * _COPY
            _copy(self.x_stage, place, self.x_next, i * _COPY)
            if self.is_plain:
                _copy(self.w_stage, place, self.w_next, i * _COPY)
            else:
                for j, weight in enumerate(self.unpacked(self.w_next[i], T.cast(self.scales[i], "float32"))):
                    T.buffer_store(self.w_stage, weight, [place + j])

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


def _copy(to: T.Buffer, to_place, source: T.Buffer, place, *row) -> None:
    """_COPY elements side by side, of a row of ``source`` if it has rows."""
    for e in range(0, _COPY, _LANES):
        value = source[(*row, T.ramp(place + e, 1, _LANES))]
        T.buffer_store(to, value, [T.ramp(to_place + e, 1, _LANES)])
