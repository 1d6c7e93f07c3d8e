"""4-bit weights (format ``q4_n32g32``) inside linear kernels: multiplied as they are for few rows, else unpacked once.

With w = scale * q + minimum, a group of 32 k adds scale * (sum x * (128 + q) - 128 * sum x) + minimum * sum x: 128 + q
is a bfloat16 whose low mantissa bits are the nibble q, so that a shift, an and, and an or make a vector of pairs of
weights.
"""

from tvm.script import tirx as T

from tir_kernels.weight_format import GROUP, PANEL_ROWS

from .gemm import Activations, panel_vectors, sum_of, zero_totals
from .isa import VectorISA
from .scratch import stack_buffer

_GROUP_WORDS = GROUP // 2  # bfloat16 pairs
OFFSET = 128.0  # of the bfloat16 whose low bits are the nibble
_FIRST_SCALE, _FIRST_MINIMUM = 256, 288  # of a group's 320 uint16


class Q4Weight:
    """A packed weight parameter int32 [NB, K // 32, 160]; constructing it declares a view of its float16."""

    def __init__(self, isa: VectorISA, packed: T.Buffer):
        num_panels, num_groups, words = (int(extent) for extent in packed.shape)
        self.isa = isa
        self.packed = packed
        self.num_groups = num_groups
        self.halves = T.decl_buffer((num_panels, num_groups, 2 * words), "uint16", data=packed.data)

    def scales(self, panel, group, first_row):
        """float32 vector: the scales of rows first_row .. of ``panel``."""
        return T.Bind(self.isa.from_f16(self.halves[panel, group, self.isa.ramp(_FIRST_SCALE + first_row)]))

    def minima(self, panel, group, first_row):
        """float32 vector: the minima of rows first_row .. of ``panel``."""
        return T.Bind(self.isa.from_f16(self.halves[panel, group, self.isa.ramp(_FIRST_MINIMUM + first_row)]))

    def scale(self, panel, group, row):
        """float32: the scale of one row of ``panel``."""
        return _f16_value(self.halves[panel, group, _FIRST_SCALE + row])

    def minimum(self, panel, group, row):
        """float32: the minimum of one row of ``panel``."""
        return _f16_value(self.halves[panel, group, _FIRST_MINIMUM + row])

    def offset_pairs(self, panel, group, t, first_row) -> list:
        """int32 vectors of pairs 128 + q: words 4 * t .. 4 * t + 3 of a group, rows first_row .. of ``panel``."""
        words = T.Bind(self.packed[panel, group, self.isa.ramp(t * PANEL_ROWS + first_row)])
        nibbles, exponent = self.isa.splat(T.int32(0x000F000F)), self.isa.splat(T.int32(0x43004300))
        return [T.Bind((T.shift_right(words, self.isa.splat(T.int32(4 * j))) & nibbles) | exponent) for j in range(4)]

    def unpack_panel(self, panel, words: T.Buffer, slot) -> None:
        """Statements: words [slots, K // 2, 32] of ``slot`` = the weights of ``panel`` as pairs of rounded bfloat16."""
        isa = self.isa
        with T.serial(self.num_groups) as group:
            with T.serial(PANEL_ROWS // isa.lanes) as v:
                scale = self.scales(panel, group, v * isa.lanes)
                minimum = self.minima(panel, group, v * isa.lanes)
                offset = T.Bind(minimum - scale * isa.splat(T.float32(OFFSET)))
                with T.serial(4) as t:
                    for j, pairs in enumerate(self.offset_pairs(panel, group, t, v * isa.lanes)):
                        even, odd = (half * scale + offset for half in isa.halves_of_bf16(pairs))
                        at = [slot, group * _GROUP_WORDS + t * 4 + j, isa.ramp(v * isa.lanes)]
                        T.buffer_store(words, isa.pair_bf16(even, odd), at)


def _f16_value(bits):
    """float32: the value of one float16, given as uint16."""
    bits = T.cast(bits, "int32")
    magnitude = T.reinterpret("float32", T.shift_left(T.bitwise_and(bits, 0x7FFF), 13)) * T.float32(2.0**112)
    return T.if_then_else(bits < 0x8000, magnitude, -magnitude)


def store_corrections(isa: VectorISA, x: T.Buffer, corrections: T.Buffer, m, num_groups: int) -> None:
    """Statements: corrections[row, group] = -128 * sum of x over the group, which undoes the offset of the nibbles."""
    with T.serial(m) as row:
        with T.serial(num_groups) as group:
            total = sum_of([isa.load(x, row, group * GROUP + i) for i in range(0, GROUP, isa.lanes)])
            T.buffer_store(corrections, isa.hsum(total) * T.float32(-OFFSET), [row, group])


def q4_tile(
    activations: Activations, corrections: T.Buffer, weight: Q4Weight, panel, first_row, rows: int
) -> list[list]:
    """Statements that sum over K with a whole panel; result[row][vector] is a float32 vector expression.

    A group's sums of two vectors stay in registers, even and odd words apart while there are few of them.
    """
    isa = activations.isa
    columns = 2
    chains = 2 if rows <= 2 else 1
    places = [isa.ramp(i * isa.lanes) for i in range(columns)]
    totals = zero_totals(isa, rows)
    parts = [[stack_buffer(columns * isa.lanes) for _ in range(chains)] for _ in range(rows)]
    x_rows = activations.rows(first_row, rows)
    with T.serial(weight.num_groups) as group:
        with T.serial(PANEL_ROWS // (columns * isa.lanes)) as block:
            firsts = [(block * columns + i) * isa.lanes for i in range(columns)]
            for r in range(rows):
                correction = T.Bind(isa.splat(corrections[first_row + r, group]))
                for at in places:
                    for c in range(chains):
                        T.buffer_store(parts[r][c], isa.zero() if c else correction, [at])
            with T.serial(4) as t:
                pairs = [weight.offset_pairs(panel, group, t, first) for first in firsts]
                for j in range(4):
                    factors = [activations.factors(column[j]) for column in pairs]
                    for f in range(len(factors[0])):
                        x_word = (group * _GROUP_WORDS + t * 4 + j) * len(factors[0]) + f
                        for r in range(rows):
                            part = parts[r][j % chains]
                            for at, factor in zip(places, factors):
                                value = activations.multiply_add(part[at], x_rows[r], x_word, factor[f])
                                T.buffer_store(part, value, [at])
            for at, first in zip(places, firsts):
                scale = weight.scales(panel, group, first)
                minimum = T.Bind(weight.minima(panel, group, first) * isa.splat(T.float32(-1 / OFFSET)))
                for r in range(rows):
                    total = totals[r][isa.ramp(first)] + sum_of([part[at] for part in parts[r]]) * scale
                    total = total + isa.splat(corrections[first_row + r, group]) * minimum
                    T.buffer_store(totals[r], total, [isa.ramp(first)])
    return panel_vectors(isa, totals)
