"""A block of a linear layer on matrix units: what it does whatever multiplies.

A block multiplies a tile of rows with a tile of output features, in steps of 32 input features, which is a group of
4-bit weights.
"""

from tvm.script import tirx as T

from tir_kernels.mlc_weights import CODES_PER_WORD, GROUP

from .matrix import code_value

DEPTH = GROUP  # input features of a step


class LinearTile:
    """The statements of a block; a subclass walks through the steps and finishes.

    tile : rows and output features of a block.
    threads : of a block; warps of 32 share the tile, ``warp_rows`` x ``warp_columns`` each.
    """

    tile: int
    threads: int
    warp_rows: int
    warp_columns: int

    def __init__(self, buffers: dict[str, T.Buffer], n: int, k: int, dtype: str, out_dtype: str) -> None:
        self.buffers, self.n, self.k, self.dtype, self.out_dtype = buffers, n, k, dtype, out_dtype
        self.is_plain = "weight" in buffers
        self.steps = k // DEPTH

    def emit(self, m, block_row, block_column, thread) -> None:
        self.m, self.thread = m, thread
        self.row0, self.column0 = block_row * self.tile, block_column * self.tile
        self.warp, self.lane = thread // 32, thread % 32
        warps_along = self.tile // self.warp_columns
        self.warp_row = self.warp // warps_along * self.warp_rows
        self.warp_column = self.warp % warps_along * self.warp_columns
        self.start()
        self.multiply_steps()
        self.finish()

    def start(self) -> None:
        """Statements: all sums are zero."""
        raise NotImplementedError

    def multiply_steps(self) -> None:
        """Statements: add the products of all input features.

        Rows and columns beyond the matrix repeat its last one (:meth:`x_row`, :meth:`w_row`).
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Statements: :meth:`store` the sums of the rows and columns that there are."""
        raise NotImplementedError

    def x_row(self, row):
        """The row of x behind ``row`` of the tile."""
        return T.min(self.row0 + row, self.m - 1)

    def w_row(self, row):
        """The row of the weight behind column ``row`` of the tile."""
        return T.min(self.column0 + row, self.n - 1)

    def unpacked(self, word, scale) -> list:
        """The weights, in dtype, of a uint32 of codes whose scale is ``scale`` in float32."""
        codes = [T.bitwise_and(T.shift_right(word, T.uint32(4 * j)), T.uint32(15)) for j in range(CODES_PER_WORD)]
        return [T.cast(code_value(code) * scale, self.dtype) for code in codes]

    def store(self, row, column, sums: T.Buffer, place, width: int) -> None:
        """Statements: ``width`` outputs from sums[place] on, which there must be."""

        def lanes(dtype: str) -> str:
            return dtype if width == 1 else f"{dtype}x{width}"

        columns, places = _side_by_side(column, width), _side_by_side(place, width)
        value = sums[places]
        if "bias" in self.buffers:
            value = value + T.cast(self.buffers["bias"][columns], lanes("float32"))
        if "residual" in self.buffers:
            value = value + T.cast(self.buffers["residual"][row, columns], lanes("float32"))
        T.buffer_store(self.buffers["out"], T.cast(value, lanes(self.out_dtype)), [row, columns])


def _side_by_side(first, lanes: int):
    """The index of ``lanes`` elements from ``first`` on."""
    return first if lanes == 1 else T.ramp(first, 1, lanes)
