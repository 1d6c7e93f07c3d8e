"""Products of 4-bit weights with many rows of activations in 8-bit integers, which multiply twice as fast as bfloat16.

Activations get a scale for each row and group of 64 k, xs = max|x| / 127; weights one for each output feature,
s = max|w| / 127, a step small beside that of 4-bit weights. The instruction takes unsigned activations, so they are
stored as 128 + q, and a group's integer sum starts at -128 * (sum of the group's weights), the same for all rows. At
the end of a group the sums are scaled and added in float32, which costs 6 % of the time with 64 k and 11 % with 32.
"""

from dataclasses import dataclass

from tvm.script import tirx as T

from tir_kernels.weight_format import GROUP, PANEL_ROWS

from .gemm import panel_vectors, zero_totals
from .isa import VectorISA
from .q4 import OFFSET, Q4Weight
from .quantized_row import MAX_CODE, ROUNDING, TINY, code_bytes, magnitude, quantized

TILE_ROWS = 6  # with two vectors of outputs, 12 integer and 12 float32 sums in registers
_WORDS = GROUP // 4  # int32 words of four k in a group of the weights
_CODE_OFFSET = 128  # of activations
_OFFSET_BYTES = -0x7F7F7F80  # four unsigned bytes of 128, as int32


def group_size(k: int) -> int:
    """How many of the k features share a scale of the activations."""
    return 64 if k % 64 == 0 else GROUP


def panel_shape(slots: int, k: int) -> tuple[int, int, int, int]:
    """Of the int32 words of unpacked panels: a group's words of four k, then where its sums start."""
    size = group_size(k)
    return slots, k // size, size // 4 + 1, PANEL_ROWS


@dataclass(frozen=True)
class QuantizedActivations:
    """x [m, k] as 8-bit codes 128 + q.

    Parameters
    ----------
    words : int32 [m, k // 4], four codes a word, the first in the low byte.
    scales : float32 [m, k // group_size(k)]; x = scale * q.
    """

    words: T.Buffer
    scales: T.Buffer

    def store(self, isa: VectorISA, x: T.Buffer, row, k: int) -> None:
        """Statements: quantize one row of x."""
        size = group_size(k)
        codes = T.decl_buffer((*self.words.shape[:-1], k), "uint8", data=self.words.data)
        with T.serial(k // size) as group:
            firsts = [group * size + i for i in range(0, size, isa.lanes)]
            values = [T.Bind(isa.load(x, row, first)) for first in firsts]
            largest, rounded = quantized(isa, values, _CODE_OFFSET)
            T.buffer_store(self.scales, largest * T.float32(1 / MAX_CODE), [row, group])
            for first, value in zip(firsts, rounded):
                T.buffer_store(codes, code_bytes(isa, value, "uint8"), [row, isa.ramp(first)])


def unpack_int8_panel(weight: Q4Weight, panel, words: T.Buffer, scales: T.Buffer, slot) -> None:
    """Statements: the weights of ``panel`` as 8-bit integers times a scale for each row.

    words : int32 of panel_shape(slots, k), of which ``slot`` is written; the last vectors of a group are
        -128 * (sum of the group).
    scales : float32 [slots, 32].
    """
    isa = weight.isa
    parts = group_size(weight.num_groups * GROUP) // GROUP
    with T.serial(PANEL_ROWS // isa.lanes) as v:
        lanes = isa.ramp(v * isa.lanes)
        _store_row_scales(weight, panel, scales, slot, v * isa.lanes)
        # A row of zeros has the codes 0 whatever the scale.
        row_scale = isa.vmax(scales[slot, lanes], isa.splat(T.float32(TINY)))
        inverse = T.Bind(isa.splat(T.float32(1)) / row_scale)
        with T.serial(weight.num_groups // parts) as group:
            sums = isa.splat(T.int32(0))
            for part in range(parts):
                source = T.Bind(group * parts + part)
                scale = T.Bind(weight.scales(panel, source, v * isa.lanes) * inverse)
                minimum = weight.minima(panel, source, v * isa.lanes)
                offset = T.Bind(minimum * inverse - scale * isa.splat(T.float32(OFFSET)))
                for t in range(4):
                    pairs = weight.offset_pairs(panel, source, t, v * isa.lanes)
                    for i in range(2):
                        halves = [half for pair in pairs[2 * i : 2 * i + 2] for half in isa.halves_of_bf16(pair)]
                        word = T.Bind(_bytes(isa, [half * scale + offset for half in halves]))
                        T.buffer_store(words, word, [slot, group, part * _WORDS + 2 * t + i, lanes])
                        sums = T.Bind(isa.dot4(sums, isa.splat(T.int32(_OFFSET_BYTES)), word))
            T.buffer_store(words, isa.splat(T.int32(0)) - sums, [slot, group, parts * _WORDS, lanes])


def _bytes(isa: VectorISA, values: list):
    """Four float32 vectors, rounded to integers of 8 bits, in the bytes of an int32 vector."""
    word = isa.splat(T.int32(0))
    for e, value in enumerate(values):
        bits = T.reinterpret(f"int32x{isa.lanes}", value + isa.splat(T.float32(ROUNDING)))
        word = word | T.shift_left(bits & isa.splat(T.int32(255)), isa.splat(T.int32(8 * e)))
    return word


def _store_row_scales(weight: Q4Weight, panel, scales: T.Buffer, slot, first_row) -> None:
    """Statements: the largest value that the codes 0 and 15 of a row stand for, over 127."""
    isa = weight.isa
    at = [slot, isa.ramp(first_row)]
    T.buffer_store(scales, isa.zero(), at)
    with T.serial(weight.num_groups) as group:
        minimum = weight.minima(panel, group, first_row)
        maximum = T.Bind(weight.scales(panel, group, first_row) * isa.splat(T.float32(15)) + minimum)
        largest = isa.vmax(magnitude(isa, minimum), magnitude(isa, maximum))
        T.buffer_store(scales, isa.vmax(scales[tuple(at)], largest * isa.splat(T.float32(1 / MAX_CODE))), at)


def int8_tile(
    isa: VectorISA, x: QuantizedActivations, words: T.Buffer, scales: T.Buffer, slot, first_row, rows: int
) -> list[list]:
    """Statements that sum over K with an unpacked panel; result[row][vector] is a float32 vector expression."""
    places = [isa.ramp(first) for first in range(0, PANEL_ROWS, isa.lanes)]
    totals = zero_totals(isa, rows)
    group_words = int(words.shape[2]) - 1
    with T.serial(words.shape[1]) as group:
        # The rows of the next tile: with a wide K they come from the L3 cache.
        for r in range(rows):
            T.evaluate(isa.prefetch(x.words[first_row + rows + r, group * group_words]))
        sums = [[words[slot, group, group_words, at] for at in places] for _ in range(rows)]
        for i in range(group_words):
            factors = [T.Bind(words[slot, group, i, at]) for at in places]
            for r in range(rows):
                codes = T.Bind(isa.splat(x.words[first_row + r, group * group_words + i]))
                sums[r] = [T.Bind(isa.dot4(total, codes, factor)) for total, factor in zip(sums[r], factors)]
        for r in range(rows):
            scale = isa.splat(x.scales[first_row + r, group])
            for at, total in zip(places, sums[r]):
                value = totals[r][at] + T.cast(total, f"float32x{isa.lanes}") * scale
                T.buffer_store(totals[r], value, [at])
    return [[value * scales[slot, at] for value, at in zip(row, places)] for row in panel_vectors(isa, totals)]
