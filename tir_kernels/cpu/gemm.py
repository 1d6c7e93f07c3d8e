"""Register-blocked matrix products: the row tile that the linear kernels share.

These functions emit statements into the PrimFunc under construction (TVMScript's IR builder). Vector lanes are output
features; a tile multiplies a few rows of activations with vectors of one or two weight panels over the whole of K, its sums in
registers. Neither K nor the rows are blocked for caches: a panel (64 K bytes in bfloat16) stays in the L2 cache, and the rows
stream past it at 2 bytes a cycle.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from tir_kernels.weight_format import PANEL_ROWS

from .isa import VectorISA
from .scratch import stack_buffer

_MAX_TILE_ROWS = 8
_MIN_CHAINS = 8  # independent sums that hide the latency of a multiply-add


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


def max_tile_rows(isa: VectorISA, num_panels: int) -> int:
    """Rows of the full tile: enough that loads are few beside multiplications, its sums in three quarters of the registers."""
    vectors = min(PANEL_ROWS // isa.lanes, 2 if isa.lanes >= 8 else 4)
    return min(_MAX_TILE_ROWS, _max_sums(isa) // (vectors * num_panels))


def tile_vectors(isa: VectorISA, rows: int, num_panels: int) -> int:
    """Vectors of each panel in a tile of ``rows`` rows: the whole panel if the sums fit in registers."""
    vectors = PANEL_ROWS // isa.lanes
    while rows * vectors * num_panels > _max_sums(isa):
        vectors //= 2
    return vectors


def _max_sums(isa: VectorISA) -> int:
    return isa.num_vector_registers * 3 // 4


def word_tile(
    activations: Activations, first_row, rows: int, readers: list[Callable], num_vectors: int, num_words: int
) -> list[list[list]]:
    """Statements that sum over K; result[panel][row][vector] is a float32 vector expression.

    ``readers[panel](word, vector)`` is the vector of weight words that meets word ``word`` of a row of ``num_words``.
    """
    isa = activations.isa
    width = len(readers) * num_vectors
    chains = next(c for c in (4, 2, 1) if c == 1 or (rows * width * c <= _MIN_CHAINS and num_words % c == 0))
    sums = [[stack_buffer(width * isa.lanes) for _ in range(chains)] for _ in range(rows)]
    places = [isa.ramp(v * isa.lanes) for v in range(width)]
    for total in (total for row_sums in sums for total in row_sums):
        for at in places:
            T.buffer_store(total, isa.zero(), [at])
    x_rows = activations.rows(first_row, rows)
    with T.serial(num_words // chains) as step:
        for c in range(chains):
            word = step * chains + c
            factors = [activations.factors(read(word, v)) for read in readers for v in range(num_vectors)]
            for f in range(len(factors[0])):
                for r, v in _longer_loop_outside(rows, width):
                    total = sums[r][c]
                    x_word = word * len(factors[0]) + f
                    value = activations.multiply_add(total[places[v]], x_rows[r], x_word, factors[v][f])
                    T.buffer_store(total, value, [places[v]])
    return [
        [[sum_of([total[places[p * num_vectors + v]] for total in row_sums]) for v in range(num_vectors)] for row_sums in sums]
        for p in range(len(readers))
    ]


def _longer_loop_outside(rows: int, width: int) -> list[tuple[int, int]]:
    """The order of a tile's multiplications: LLVM keeps it, and the operands of the inner loop take registers."""
    if rows >= width:
        return [(r, v) for r in range(rows) for v in range(width)]
    return [(r, v) for v in range(width) for r in range(rows)]


def sum_of(parts: list):
    """The sum of a list of expressions, as a balanced tree."""
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2])] + parts[len(parts) // 2 * 2 :]
    return parts[0]


def for_each_tile(first_row, count, max_rows: int, tile: Callable) -> None:
    """Cover rows first_row .. first_row + count - 1 with ``tile(first_row, rows)``, rows being a Python int <= max_rows."""
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
