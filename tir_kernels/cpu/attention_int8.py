"""Softmax weights of a page of 8-bit entries, where the CPU multiplies 8-bit integers four at a time.

The instruction takes unsigned bytes times signed ones. Keys are stored as 128 + q and meet queries that are quantized
with a scale a row; the sum of a row starts at -128 times the sum of its query. Weights become unsigned bytes for each
row and page anew: 2**(score - the row's largest in the page) times the scale of the value, 255 for the largest scale in
the page. So the rounding of a weight is 1/510 of the largest that it could have been in this page, wherever the running
maximum stands.
"""

import math
from functools import reduce
from operator import add
from types import SimpleNamespace

from tvm.script import tirx as T

from .attention_shape import AttentionShape
from .attention_task import RESCALE_AT, rescale
from .quantized_row import MAX_CODE, TINY, code_bytes, codes_of, quantized, rotated
from .scratch import stack_buffer

_MAX_WEIGHT = 255.0
_KEY_OFFSET = 128.0
_MIN_ROW_SCALE = 1e-9  # of queries that are as good as zero
_LEAST_PEAK = -1e20  # for a row that sees nothing of a page; above NEVER * _MIN_ROW_SCALE
_ROWS_AT_A_TIME = 4  # of VectorISA.row_maxima


def int8_softmax(shape: AttentionShape, sm_scale: float, ask_ahead) -> SimpleNamespace:
    """The arithmetic of :func:`attention_block` for 8-bit pages; ``ask_ahead`` as there."""
    isa, L, R, d, page = shape.isa, shape.isa.lanes, shape.row_block, shape.head_dim, shape.page_size
    ramp, vectors, words = isa.ramp, page // L, L // shape.pair
    scale = sm_scale * math.log2(math.e)
    raise_maximum = rescale(shape)

    def pages(rows: int) -> SimpleNamespace:
        return SimpleNamespace(
            row_scales=T.sblock_alloc_buffer((rows + L,), "float32"),  # of scores, in base 2 units
            first_sums=T.sblock_alloc_buffer((rows,), "int32"),
            value_scales=T.sblock_alloc_buffer((page,), "float32"),  # of the page that was entered; at most 255
            weight_step=T.sblock_alloc_buffer((1,), "float32"),  # what a weight of 1 and a value of 1 stand for
            output_steps=T.sblock_alloc_buffer((R + L,), "float32"),  # the same for a row, since its maximum
        )

    @T.inline
    def enter(k_pages, v_pages, head_page, num_entries, s):
        with T.sblock("enter"):
            T.reads()
            T.writes()
            peak = T.sblock_alloc_buffer((L,), "float32")
            for v in T.unroll(vectors):
                s.pages.value_scales[ramp(v * L)] = T.Select(
                    T.ramp(v * L, 1, L) < T.broadcast(num_entries, L),
                    shape.value_scales(v_pages, head_page, v * L),
                    isa.zero(),
                )
            peak[ramp(0)] = isa.splat(T.float32(TINY))
            for v in T.unroll(vectors):
                peak[ramp(0)] = isa.vmax(peak[ramp(0)], s.pages.value_scales[ramp(v * L)])
            largest: T.let = isa.hmax(peak[ramp(0)])
            s.pages.weight_step[0] = largest * T.float32(1 / _MAX_WEIGHT)
            factor: T.let = T.float32(_MAX_WEIGHT) / largest
            for v in T.unroll(vectors):
                s.pages.value_scales[ramp(v * L)] = s.pages.value_scales[ramp(v * L)] * isa.splat(factor)

    @T.inline
    def clear_query(r, s):
        for v in T.serial(d // L):
            s.queries[r, T.ramp(v * words, 1, words)] = T.broadcast(T.int32(0), words)
        s.pages.row_scales[r] = T.float32(1)
        s.pages.first_sums[r] = 0

    def store_query(q, token, head, r, s) -> None:
        values = rotated(isa, [T.Bind(isa.load(q, token, head, v * L)) for v in range(d // L)])
        largest, rounded = quantized(isa, values)
        for v, value in enumerate(rounded):
            codes = T.reinterpret(f"int32x{words}", code_bytes(isa, value, "int8"))
            T.buffer_store(s.queries, codes, [r, T.ramp(v * words, 1, words)])
        total = isa.hsum(T.cast(reduce(add, (codes_of(isa, value) for value in rounded)), f"float32x{L}"))
        T.buffer_store(s.pages.first_sums, T.cast(total * T.float32(-_KEY_OFFSET), "int32"), [r])
        # The score of an entry that is not seen must stay far below all others.
        row_scale = T.max(largest * T.float32(scale / MAX_CODE), T.float32(_MIN_ROW_SCALE))
        T.buffer_store(s.pages.row_scales, row_scale, [r])

    def first_sum(row, s):
        return isa.splat(s.pages.first_sums[row])

    def score(total, k_pages, head_page, column):
        return T.cast(total, f"float32x{L}") * shape.key_scales(k_pages, head_page, column)

    def row_peaks(s) -> list:
        """Vectors of the largest score of each row in the page, four rows a vector."""
        peaks = []
        for i in range(R):
            scores = [s.scores[i, ramp(v * L)] for v in range(vectors)]
            peaks.append(T.Bind(reduce(isa.vmax, scores)))
        peaks += peaks[-1:] * (-R % _ROWS_AT_A_TIME)
        return [isa.row_maxima(*peaks[i : i + _ROWS_AT_A_TIME]) for i in range(0, R, _ROWS_AT_A_TIME)]

    def store_peaks(s, peaks) -> None:
        for i, vector in enumerate(row_peaks(s)):
            T.buffer_store(peaks, vector, [ramp(i * _ROWS_AT_A_TIME)])

    def store_weights(s, i, row, peak, scale_of_row) -> None:
        """The weights of row ``i`` of the block, and their sum."""
        total = isa.zero()
        for first in range(0, vectors, 4):
            words_of_row = []
            for v in range(first, first + 4):
                x = s.scores[i, ramp(v * L)] * isa.splat(scale_of_row) - isa.splat(peak)
                e = T.Bind(isa.exp2(x, fast=True))
                total = e if v == 0 else T.Bind(total + e)
                weight = e * s.pages.value_scales[ramp(v * L)] + isa.splat(T.float32(0.5))
                words_of_row.append(T.Bind(T.cast(weight, f"int32x{L}")))
            T.buffer_store(s.weights, isa.pack_u8(words_of_row), [i, ramp(first // 4 * L)])
        return total

    def add_row(s, i, row, peaks, factors) -> None:
        peak, scale_of_row = T.Bind(peaks[i]), T.Bind(s.pages.row_scales[row])
        total = store_weights(s, i, row, peak, scale_of_row)
        T.buffer_store(s.sums, s.sums[row, ramp(0)] + total * isa.splat(factors[i]), [row, ramp(0)])

    @T.inline
    def soften(k_pages, v_pages, head_page, next_pages, row0, s):
        with T.sblock("weights"):
            T.reads()
            T.writes()
            peaks = stack_buffer(R + L)  # base 2 units from here on
            factors = stack_buffer(L)
            store_peaks(s, peaks)
            scaled: T.let = peaks[ramp(0)] * s.pages.row_scales[ramp(row0)]
            peaks[ramp(0)] = isa.vmax(scaled, isa.splat(T.float32(_LEAST_PEAK)))
            grown: T.let = isa.greater_mask(peaks[ramp(0)], s.maxima[ramp(row0)] + isa.splat(T.float32(RESCALE_AT)))
            if grown % (1 << R) != 0:
                for i in T.unroll(R):
                    raise_maximum(s, row0 + i, peaks[i])
            factors[ramp(0)] = isa.exp2(peaks[ramp(0)] - s.maxima[ramp(row0)], fast=True)
            s.pages.output_steps[ramp(0)] = factors[ramp(0)] * isa.splat(s.pages.weight_step[0])
            for i in T.unroll(R):
                ask_ahead(k_pages, v_pages, head_page, next_pages, row0, i)
                add_row(s, i, row0 + i, peaks, factors)

    def first_output(_row0, _i, _column, _s):
        return isa.splat(T.int32(0))

    def output(total, row0, i, column, s):
        step = isa.splat(s.pages.output_steps[i])
        return s.outputs[row0 + i, ramp(column)] + T.cast(total, f"float32x{L}") * step

    return SimpleNamespace(
        pages=pages,
        enter=enter,
        clear_query=clear_query,
        store_query=store_query,
        first_sum=first_sum,
        score=score,
        soften=soften,
        first_output=first_output,
        output=output,
    )
