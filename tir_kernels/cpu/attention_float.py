"""Softmax weights of a page in float32 or packed bfloat16."""

import math
from types import SimpleNamespace

from tvm.script import tirx as T

from .attention_shape import AttentionShape
from .attention_task import RESCALE_AT, rescale
from .vector_ranges import vector_starts


def float_softmax(shape: AttentionShape, sm_scale: float, ask_ahead) -> SimpleNamespace:
    """The arithmetic of :func:`attention_block` for pages of the model's dtype; ``ask_ahead`` as there."""
    isa, L, R, ramp = shape.isa, shape.isa.lanes, shape.row_block, shape.isa.ramp
    vectors = shape.page_size // L
    scale = sm_scale * math.log2(math.e)
    fast = shape.dtype == "bfloat16"
    query_starts = vector_starts(isa, shape.query_width)
    raise_maximum = rescale(shape)

    def pages(rows: int) -> SimpleNamespace:
        return SimpleNamespace()

    @T.inline
    def enter(k_pages, v_pages, head_page, num_entries, s):
        T.evaluate(0)

    @T.inline
    def clear_query(r, s):
        for v in T.serial(query_starts.count):
            s.queries[r, ramp(query_starts[v])] = T.broadcast(T.cast(0, shape.operand_dtype), L)

    @T.inline
    def store_query(q, token, head, r, s):
        for v in T.serial(query_starts.count):
            if shape.dot:
                s.queries[r, ramp(query_starts[v])] = T.reinterpret(
                    f"int32x{L}", q[token, head, T.ramp(2 * query_starts[v], 1, 2 * L)]
                )
            else:
                s.queries[r, ramp(query_starts[v])] = isa.load(q, token, head, query_starts[v])

    def first_sum(_row, _s):
        return isa.zero()

    def score(total, _k_pages, _head_page, _column):
        return total

    @T.inline
    def raise_maxima(row0, s):
        with T.sblock("maxima"):
            T.reads()
            T.writes()
            peak = T.sblock_alloc_buffer((R, L), "float32")
            grown = T.sblock_alloc_buffer((1,), "int32")
            for i in T.unroll(R):
                peak[i, ramp(0)] = s.scores[i, ramp(0)]
            for v in T.serial(1, vectors):
                for i in T.unroll(R):
                    peak[i, ramp(0)] = isa.vmax(peak[i, ramp(0)], s.scores[i, ramp(v * L)])
            grown[0] = 0
            for i in T.unroll(R):
                grown[0] = grown[0] | isa.greater_mask(
                    peak[i, ramp(0)], isa.splat((s.maxima[row0 + i] + T.float32(RESCALE_AT)) * T.float32(1 / scale))
                )
            if grown[0] != 0:
                for i in T.unroll(R):
                    maximum: T.let = isa.hmax(peak[i, ramp(0)]) * T.float32(scale)
                    raise_maximum(s, row0 + i, maximum)

    @T.inline
    def compute_weights(k_pages, v_pages, head_page, next_pages, row0, s):
        with T.sblock("weights"):
            T.reads()
            T.writes()
            e = T.sblock_alloc_buffer((2, L), "float32")
            total = T.sblock_alloc_buffer((L,), "float32")
            for i in T.unroll(R):
                ask_ahead(k_pages, v_pages, head_page, next_pages, row0, i)
                total[ramp(0)] = s.sums[row0 + i, ramp(0)]
                for w in T.unroll((vectors + 1) // 2):
                    for half in T.unroll(2):
                        if 2 * w + half < vectors:
                            e[half, ramp(0)] = isa.exp2(
                                s.scores[i, ramp((2 * w + half) * L)] * isa.splat(T.float32(scale))
                                - isa.splat(s.maxima[row0 + i]),
                                fast=fast,
                            )
                            total[ramp(0)] = total[ramp(0)] + e[half, ramp(0)]
                            if not shape.dot:
                                s.weights[i, ramp((2 * w + half) * L)] = e[half, ramp(0)]
                    if shape.dot:
                        s.weights[i, ramp(w * L)] = isa.pack_bf16(e[0, ramp(0)], e[1, ramp(0)])
                s.sums[row0 + i, ramp(0)] = total[ramp(0)]

    @T.inline
    def soften(k_pages, v_pages, head_page, next_pages, row0, s):
        raise_maxima(row0, s)
        compute_weights(k_pages, v_pages, head_page, next_pages, row0, s)

    def first_output(row0, i, column, s):
        return s.outputs[row0 + i, ramp(column)]

    def output(total, _row0, _i, _column, _s):
        return total

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
