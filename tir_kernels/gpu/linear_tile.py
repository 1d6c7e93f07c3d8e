"""A block of a linear layer on matrix units: what it does whatever multiplies.

A block multiplies a tile of rows with a tile of output features, in steps of 32 input features, which is a group of
4-bit weights. While a step is multiplied from shared memory, the next one is on its way from global memory to
registers.
"""

from collections.abc import Callable

from tvm.script import tirx as T

from tir_kernels.mlc_weights import CODES_PER_WORD, GROUP

from .matrix import code_value

DEPTH = GROUP  # input features of a step
STRIDE = DEPTH + 8  # elements of a row in shared memory: the 8 rows that are read at once lie in all banks
_COPY = CODES_PER_WORD  # elements that a thread copies at once, of 4-bit weights a word


class LinearTile:
    """The statements of a block; a subclass multiplies and finishes.

    tile : rows and output features of a block.
    threads : of a block; warps of 32 share the tile, ``warp_rows`` x ``warp_columns`` each.
    stages : steps that shared memory holds.
    lanes : elements of 16 bits that one instruction copies.
    """

    tile: int
    threads: int
    warp_rows: int
    warp_columns: int
    stages: int
    lanes: int

    def __init__(self, buffers: dict[str, T.Buffer], n: int, k: int, dtype: str, out_dtype: str) -> None:
        self.buffers, self.n, self.k, self.dtype, self.out_dtype = buffers, n, k, dtype, out_dtype
        self.copies = self.tile * DEPTH // _COPY // self.threads  # of a thread, for each of the two operands
        size = self.stages * self.tile * STRIDE
        self.x_stage, self.w_stage = (T.alloc_buffer((size,), dtype, scope="shared") for _ in range(2))
        self.x_next = T.alloc_buffer((self.copies * _COPY,), dtype, scope="local")
        if "weight" in buffers:
            self.w_next = T.alloc_buffer((self.copies * _COPY,), dtype, scope="local")
        else:
            self.w_next = T.alloc_buffer((self.copies,), "uint32", scope="local")
            self.scales = T.alloc_buffer((self.copies,), dtype, scope="local")

    def emit(self, m, block_row, block_column, thread) -> None:
        self.m, self.thread = m, thread
        self.row0, self.column0 = block_row * self.tile, block_column * self.tile
        self.warp, self.lane = thread // 32, thread % 32
        warps_along = self.tile // self.warp_columns
        self.warp_row = self.warp // warps_along * self.warp_rows
        self.warp_column = self.warp % warps_along * self.warp_columns
        steps = self.k // DEPTH
        self.start()
        self._load(0)
        self._stage(0)
        T.evaluate(T.tvm_storage_sync("shared"))
        with T.serial(steps) as step:
            with T.If(step + 1 < steps), T.Then():
                self._load(step + 1)
            self.multiply(step % self.stages)
            if self.stages == 1:
                T.evaluate(T.tvm_storage_sync("shared"))
            with T.If(step + 1 < steps), T.Then():
                self._stage((step + 1) % self.stages)
            T.evaluate(T.tvm_storage_sync("shared"))
        self.finish()

    def start(self) -> None:
        """Statements: all sums are zero."""
        raise NotImplementedError

    def multiply(self, stage) -> None:
        """Statements: add the products of a step, which lies in ``x_stage`` and ``w_stage`` (:meth:`place`)."""
        raise NotImplementedError

    def finish(self) -> None:
        """Statements: :meth:`store` the sums of the rows and columns that there are."""
        raise NotImplementedError

    def place(self, stage, row, depth):
        """Where an element of a row of the tile, or of an output feature, lies in shared memory."""
        return (stage * self.tile + row) * STRIDE + depth

    def _copies(self, do: Callable) -> None:
        """``do(i, row, vector)`` for every vector of a tile's step that this thread copies."""
        vectors = DEPTH // _COPY
        for i in range(self.copies):
            place = self.thread + i * self.threads
            do(i, place // vectors, place % vectors)

    def _load(self, step) -> None:
        """Asks for a step. Rows and columns beyond the matrix repeat its last one; nothing is stored of them."""

        def load(i, row, vector) -> None:
            column = step * DEPTH + vector * _COPY
            x_row = T.min(self.row0 + row, self.m - 1)
            self._copy(self.x_next, lambda e: [i * _COPY + e], self.buffers["x"], lambda e: [x_row, column + e])
            w_row = T.min(self.column0 + row, self.n - 1)
            if "weight" in self.buffers:
                weight = self.buffers["weight"]
                self._copy(self.w_next, lambda e: [i * _COPY + e], weight, lambda e: [w_row, column + e])
            else:
                word = self.buffers["q_weight"][w_row, step * (DEPTH // CODES_PER_WORD) + vector]
                T.buffer_store(self.w_next, word, [i])
                T.buffer_store(self.scales, self.buffers["q_scale"][w_row, step], [i])

        self._copies(load)

    def _stage(self, stage) -> None:
        """Puts what was asked for into shared memory."""

        def store(i, row, vector) -> None:
            place = self.place(stage, row, vector * _COPY)
            self._copy(self.x_stage, lambda e: [place + e], self.x_next, lambda e: [i * _COPY + e])
            if "weight" in self.buffers:
                self._copy(self.w_stage, lambda e: [place + e], self.w_next, lambda e: [i * _COPY + e])
            else:
                scale = T.cast(self.scales[i], "float32")
                for j in range(CODES_PER_WORD):
                    code = T.bitwise_and(T.shift_right(self.w_next[i], T.uint32(4 * j)), T.uint32(15))
                    T.buffer_store(self.w_stage, T.cast(code_value(code) * scale, self.dtype), [place + j])

        self._copies(store)

    def _copy(self, to: T.Buffer, to_place: Callable, source: T.Buffer, source_place: Callable) -> None:
        """_COPY elements side by side; ``place(e)`` are the indices of element e."""
        for e in range(0, _COPY, self.lanes):
            value = source[tuple(_vector(source_place(e), self.lanes))]
            T.buffer_store(to, value, _vector(to_place(e), self.lanes))

    def store(self, row, column, sums: T.Buffer, place, width: int) -> None:
        """Statements: ``width`` outputs from sums[place] on, which there must be."""

        def lanes(dtype: str) -> str:
            return dtype if width == 1 else f"{dtype}x{width}"

        (columns,), (places,) = _vector([column], width), _vector([place], width)
        value = sums[places]
        if "bias" in self.buffers:
            value = value + T.cast(self.buffers["bias"][columns], lanes("float32"))
        if "residual" in self.buffers:
            value = value + T.cast(self.buffers["residual"][row, columns], lanes("float32"))
        T.buffer_store(self.buffers["out"], T.cast(value, lanes(self.out_dtype)), [row, columns])


def _vector(indices: list, lanes: int) -> list:
    """``lanes`` elements from an element on."""
    return indices if lanes == 1 else [*indices[:-1], T.ramp(indices[-1], 1, lanes)]
