"""Register-blocked matrix products: the row tile that the linear kernels share.

These functions emit statements into the PrimFunc under construction (TVMScript's IR builder). Vector lanes are output
features; a tile multiplies a few rows of activations with a weight panel over the whole of K, its sums in registers. A
panel (64 K bytes in bfloat16) stays in the L2 cache while rows stream past it at 2 bytes a cycle, so that neither K nor
the rows are blocked for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from tir_kernels.weight_format import PANEL_ROWS

from .isa import VectorISA
from .scratch import stack_buffer

_MAX_TILE_ROWS = 8
_MIN_CHAINS = 8  # independent sums that hide the latency of a multiply-add
_BLOCK_WORDS = 32  # of K: 4 KiB of a panel, which is read in order if its parts take turns this often


@dataclass(frozen=True)
class Activations:
    """The left operand x [m, k].

    Parameters
    ----------
    isa : vector tier.
    dtype : "bfloat16" or "float32", of x and of the weights; a weight word is a pair of bfloat16 or one float32.
    buffer : the words of x, a flat buffer: int32 pairs if the tier multiplies bfloat16 pairs, else float32.
    row_words : words of a row of ``buffer``.
    """

    isa: VectorISA
    dtype: str
    buffer: T.Buffer
    row_words: int

    @property
    def widened(self) -> bool:
        """True if bfloat16 is multiplied as float32, because the tier has nothing better."""
        return self.dtype == "bfloat16" and not self.isa.has_bf16_dot

    def rows(self, first_row, count: int) -> list:
        """Where ``count`` rows begin in ``buffer``."""
        return [T.Bind((first_row + r) * self.row_words) for r in range(count)]

    def factors(self, words) -> list:
        """A vector of weight words as the vectors to multiply with one x word each (two if widened)."""
        return [T.Bind(v) for v in (self.isa.halves_of_bf16(words) if self.widened else (words,))]

    def multiply_add(self, total, row, word, factor):
        """total + x[row, word] * factor, a float32 vector expression; ``row`` as :meth:`rows` gives it."""
        value = self.isa.splat(self.buffer[row + word])
        if self.dtype == "bfloat16" and not self.widened:
            return self.isa.dot2(total, value, factor)
        return total + value * factor


def max_tile_rows(isa: VectorISA) -> int:
    """Rows of the full tile, whose sums fit in registers with two vectors of outputs (four of the short ones)."""
    vectors = min(PANEL_ROWS // isa.lanes, 2 if isa.lanes >= 8 else 4)
    return min(_MAX_TILE_ROWS, _max_sums(isa) // vectors)


def _max_sums(isa: VectorISA) -> int:
    return isa.num_vector_registers * 3 // 4


def word_tile(activations: Activations, first_row, rows: int, read: Callable, num_words: int) -> list[list]:
    """Statements that sum over K with a panel; result[row][vector] is a float32 vector expression.

    ``read(word, first)`` is the vector of weight words for outputs first .. of the panel that meets word ``word`` of
    the ``num_words`` of a row. If the sums do not fit in registers, parts of the panel take turns in short blocks of
    K, so that memory is read in order.
    """
    isa = activations.isa
    num_vectors = PANEL_ROWS // isa.lanes
    while rows * num_vectors > _max_sums(isa):
        num_vectors //= 2
    part_width = num_vectors * isa.lanes
    x_rows = activations.rows(first_row, rows)
    if part_width == PANEL_ROWS:
        return _sum_words(activations, x_rows, read, num_vectors, 0, 0, num_words)
    totals = zero_totals(isa, rows)
    with T.serial(-(-num_words // _BLOCK_WORDS)) as block:
        word = T.Bind(block * _BLOCK_WORDS)
        with T.serial(PANEL_ROWS // part_width) as part:
            count = T.min(_BLOCK_WORDS, num_words - word)
            sums = _sum_words(activations, x_rows, read, num_vectors, part * part_width, word, count)
            for total, row_sums in zip(totals, sums):
                for v, value in enumerate(row_sums):
                    at = isa.ramp(part * part_width + v * isa.lanes)
                    T.buffer_store(total, total[at] + value, [at])
    return panel_vectors(isa, totals)


def zero_totals(isa: VectorISA, rows: int) -> list[T.Buffer]:
    """Buffers for the sums of a tile with a whole panel, one a row, set to zero."""
    totals = [stack_buffer(PANEL_ROWS) for _ in range(rows)]
    for total in totals:
        for first in range(0, PANEL_ROWS, isa.lanes):
            T.buffer_store(total, isa.zero(), [isa.ramp(first)])
    return totals


def panel_vectors(isa: VectorISA, rows: list[T.Buffer], start: int = 0) -> list[list]:
    """The vectors of 32 elements from ``start`` on of a buffer a row: result[row][vector]."""
    return [[row[isa.ramp(start + first)] for first in range(0, PANEL_ROWS, isa.lanes)] for row in rows]


def _sum_words(
    activations: Activations, x_rows: list, read: Callable, num_vectors: int, first, first_word, num_words
) -> list[list]:
    """Statements that sum over words first_word .. in registers; result[row][vector] for outputs first .. of it."""
    isa = activations.isa
    rows = len(x_rows)
    chains = 1
    if isinstance(num_words, int):
        while num_words % (2 * chains) == 0 and rows * num_vectors * 2 * chains <= _MIN_CHAINS:
            chains *= 2
    sums = [[stack_buffer(num_vectors * isa.lanes) for _ in range(chains)] for _ in range(rows)]
    places = [isa.ramp(v * isa.lanes) for v in range(num_vectors)]
    for total in (total for row_sums in sums for total in row_sums):
        for at in places:
            T.buffer_store(total, isa.zero(), [at])
    with T.serial(num_words // chains) as step:
        for c in range(chains):
            word = T.Bind(first_word + step * chains + c)
            factors = [activations.factors(read(word, first + v * isa.lanes)) for v in range(num_vectors)]
            for f in range(len(factors[0])):
                for r, v in _longer_loop_outside(rows, num_vectors):
                    x_word = word * len(factors[0]) + f
                    value = activations.multiply_add(sums[r][c][places[v]], x_rows[r], x_word, factors[v][f])
                    T.buffer_store(sums[r][c], value, [places[v]])
    return [[sum_of([total[at] for total in row_sums]) for at in places] for row_sums in sums]


def _longer_loop_outside(rows: int, num_vectors: int) -> list[tuple[int, int]]:
    """The order of a tile's multiplications: LLVM keeps it, and the operands of the inner loop take registers."""
    if rows >= num_vectors:
        return [(r, v) for r in range(rows) for v in range(num_vectors)]
    return [(r, v) for v in range(num_vectors) for r in range(rows)]


def sum_of(parts: list):
    """The sum of a list of expressions, as a balanced tree."""
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2])] + parts[len(parts) // 2 * 2 :]
    return parts[0]


def for_each_tile(first_row, count, max_rows: int, tile: Callable) -> None:
    """Cover ``count`` rows from ``first_row`` on with ``tile(first_row, rows)``; rows is a Python int <= max_rows."""
    if isinstance(count, int):
        for start in range(0, count, max_rows):
            tile(first_row + start, min(max_rows, count - start))
        return
    with T.serial(count // max_rows) as t:
        tile(first_row + t * max_rows, max_rows)
    for rest in range(1, max_rows):
        with T.If(count % max_rows == rest):
            with T.Then():
                tile(first_row + count - rest, rest)
