"""Online softmax over the pages of a packed KV cache, a few query rows at a time: what prefill and decode share.

Flash attention (Dao, arXiv:2205.14135) in base 2. A row keeps its running maximum m, the sum of 2**(score - m) a vector lane,
and the weighted sum of values. Rescaling is lazy: m only moves when a score exceeds it by more than 8, which bounds the weights
by 2**8 and leaves the ratio, hence the result, as exact.
"""

import math
from types import SimpleNamespace

from tvm.script import tirx as T

from .attention_shape import AttentionShape
from .scratch import stack_buffer
from .vector_ranges import vector_starts

_NEVER = -1e30  # the score of an entry that a row does not see, and the running maximum before the first page
_RESCALE_AT = 8.0
_CACHE_LINE = 16  # words


def attention_block(shape: AttentionShape, sm_scale: float) -> SimpleNamespace:
    """TVMScript statements for one task; a row is one query head of one token, row = token * group + head in the group.

    Scratch of a task, ``rows`` being a multiple of row_block: ``queries`` [rows, query_width], ``maxima`` [rows], ``sums``
    [rows, lanes], ``outputs`` [rows, head_dim]; of a row block: ``scores`` [row_block, page_size], ``weights`` [row_block,
    weight_width].
    """
    isa, L, R, g, d = shape.isa, shape.isa.lanes, shape.row_block, shape.group, shape.head_dim
    page, P = shape.page_size, shape.pair
    key_block, key_vectors = shape.key_block, shape.key_block // L
    dim_block, dim_vectors = shape.dim_block, shape.dim_block // L
    vectors = page // L
    scale = sm_scale * math.log2(math.e)
    fast = shape.dtype == "bfloat16"
    query_starts = vector_starts(isa, shape.query_width)

    @T.inline
    def start(q, token0, head, num_rows, num_padded_rows, queries, maxima, sums, outputs):
        """Copy the queries of kv head ``head`` from token ``token0`` on and reset the state; padding rows are zero."""
        for r in T.serial(num_padded_rows):
            for v in T.serial(query_starts.count):
                if r >= num_rows:
                    queries[r, isa.ramp(query_starts[v])] = T.broadcast(T.cast(0, shape.operand_dtype), L)
                elif shape.dot:
                    queries[r, isa.ramp(query_starts[v])] = T.reinterpret(
                        f"int32x{L}", q[token0 + r // g, head * g + r % g, T.ramp(2 * query_starts[v], 1, 2 * L)]
                    )
                else:
                    queries[r, isa.ramp(query_starts[v])] = isa.load(q, token0 + r // g, head * g + r % g, query_starts[v])
            maxima[r] = T.float32(_NEVER)
            sums[r, isa.ramp(0)] = isa.zero()
            for v in T.serial(d // L):
                outputs[r, isa.ramp(v * L)] = isa.zero()

    @T.inline
    def compute_scores(k_pages, head_page, next_head_page, queries, row0, scores):
        for kb in T.serial(page // key_block):
            with T.sblock("scores"):
                T.reads()
                T.writes()
                acc = stack_buffer(R * key_block)
                for i in T.unroll(R):
                    for v in T.unroll(key_vectors):
                        acc[isa.ramp(i * key_block + v * L)] = isa.zero()
                for c in T.serial(d // P):
                    if row0 == 0:
                        for v in T.unroll(-(-key_block // _CACHE_LINE)):
                            T.evaluate(isa.prefetch(k_pages[next_head_page, c, kb * key_block + v * _CACHE_LINE, 0]))
                    for v in T.unroll(key_vectors):
                        for i in T.unroll(R):
                            acc[isa.ramp(i * key_block + v * L)] = shape.multiply_add(
                                acc[isa.ramp(i * key_block + v * L)],
                                queries,
                                row0 + i,
                                c,
                                shape.page_words(k_pages, head_page, c, kb * key_block + v * L),
                            )
                for i in T.unroll(R):
                    for v in T.unroll(key_vectors):
                        scores[i, isa.ramp(kb * key_block + v * L)] = acc[isa.ramp(i * key_block + v * L)]

    @T.inline
    def raise_maxima(scores, row0, maxima, sums, outputs):
        with T.sblock("maxima"):
            T.reads()
            T.writes()
            peak = T.sblock_alloc_buffer((R, L), "float32")
            grown = T.sblock_alloc_buffer((1,), "int32")
            raised = T.sblock_alloc_buffer((1,), "float32")
            factor = T.sblock_alloc_buffer((L,), "float32")
            for i in T.unroll(R):
                peak[i, isa.ramp(0)] = scores[i, isa.ramp(0)]
            for v in T.serial(1, vectors):
                for i in T.unroll(R):
                    peak[i, isa.ramp(0)] = isa.vmax(peak[i, isa.ramp(0)], scores[i, isa.ramp(v * L)])
            grown[0] = 0
            for i in T.unroll(R):
                grown[0] = grown[0] | isa.greater_mask(
                    peak[i, isa.ramp(0)], isa.splat((maxima[row0 + i] + T.float32(_RESCALE_AT)) * T.float32(1 / scale))
                )
            if grown[0] != 0:
                for i in T.unroll(R):
                    raised[0] = T.max(maxima[row0 + i], isa.hmax(peak[i, isa.ramp(0)]) * T.float32(scale))
                    factor[isa.ramp(0)] = isa.exp2(isa.splat(maxima[row0 + i] - raised[0]))
                    maxima[row0 + i] = raised[0]
                    sums[row0 + i, isa.ramp(0)] = sums[row0 + i, isa.ramp(0)] * factor[isa.ramp(0)]
                    for v in T.serial(d // L):
                        outputs[row0 + i, isa.ramp(v * L)] = outputs[row0 + i, isa.ramp(v * L)] * factor[isa.ramp(0)]

    @T.inline
    def compute_weights(scores, row0, maxima, sums, weights):
        with T.sblock("weights"):
            T.reads()
            T.writes()
            e = T.sblock_alloc_buffer((2, L), "float32")
            total = T.sblock_alloc_buffer((L,), "float32")
            for i in T.unroll(R):
                total[isa.ramp(0)] = sums[row0 + i, isa.ramp(0)]
                for w in T.unroll((vectors + 1) // 2):
                    for half in T.unroll(2):
                        if 2 * w + half < vectors:
                            e[half, isa.ramp(0)] = isa.exp2(
                                scores[i, isa.ramp((2 * w + half) * L)] * isa.splat(T.float32(scale))
                                - isa.splat(maxima[row0 + i]),
                                fast=fast,
                            )
                            total[isa.ramp(0)] = total[isa.ramp(0)] + e[half, isa.ramp(0)]
                            if not shape.dot:
                                weights[i, isa.ramp((2 * w + half) * L)] = e[half, isa.ramp(0)]
                    if shape.dot:
                        weights[i, isa.ramp(w * L)] = isa.pack_bf16(e[0, isa.ramp(0)], e[1, isa.ramp(0)])
                sums[row0 + i, isa.ramp(0)] = total[isa.ramp(0)]

    @T.inline
    def accumulate_values(v_pages, head_page, next_head_page, weights, row0, num_visible, outputs):
        for db in T.serial(d // dim_block):
            with T.sblock("values"):
                T.reads()
                T.writes()
                acc = stack_buffer(R * dim_block)
                for i in T.unroll(R):
                    for v in T.unroll(dim_vectors):
                        acc[isa.ramp(i * dim_block + v * L)] = outputs[row0 + i, isa.ramp(db * dim_block + v * L)]
                for t in T.serial(num_visible // P):
                    if row0 == 0:
                        for v in T.unroll(-(-dim_block // _CACHE_LINE)):
                            T.evaluate(isa.prefetch(v_pages[next_head_page, t, db * dim_block + v * _CACHE_LINE, 0]))
                    for v in T.unroll(dim_vectors):
                        for i in T.unroll(R):
                            acc[isa.ramp(i * dim_block + v * L)] = shape.multiply_add(
                                acc[isa.ramp(i * dim_block + v * L)],
                                weights,
                                i,
                                t,
                                shape.page_words(v_pages, head_page, t, db * dim_block + v * L),
                            )
                if num_visible % P > 0:
                    for v in T.unroll(dim_vectors):
                        for i in T.unroll(R):
                            acc[isa.ramp(i * dim_block + v * L)] = shape.multiply_add(
                                acc[isa.ramp(i * dim_block + v * L)],
                                weights,
                                i,
                                num_visible // P,
                                shape.first_of_pair(
                                    shape.page_words(v_pages, head_page, num_visible // P, db * dim_block + v * L)
                                ),
                            )
                for i in T.unroll(R):
                    for v in T.unroll(dim_vectors):
                        outputs[row0 + i, isa.ramp(db * dim_block + v * L)] = acc[isa.ramp(i * dim_block + v * L)]

    @T.inline
    def update(
        k_pages, v_pages, head_page, next_head_page, queries, row0, visible0, num_rows, maxima, sums, outputs, scores, weights):
        """Rows row0 .. row0 + row_block meet a page, of which row r sees the first visible0 + r // group entries.

        Entries that none of the rows below ``num_rows`` sees have no influence, whatever they hold.
        """
        num_visible: T.let = T.min(visible0 + (T.min(row0 + R, num_rows) - 1) // g, page)
        if num_visible > 0:
            compute_scores(k_pages, head_page, next_head_page, queries, row0, scores)
            if visible0 + row0 // g < page:
                for i in T.serial(R):
                    for v in T.serial(vectors):
                        scores[i, isa.ramp(v * L)] = T.Select(
                            T.ramp(v * L, 1, L) < T.broadcast(T.min(visible0 + (row0 + i) // g, num_visible), L),
                            scores[i, isa.ramp(v * L)],
                            isa.splat(T.float32(_NEVER)),
                        )
            raise_maxima(scores, row0, maxima, sums, outputs)
            compute_weights(scores, row0, maxima, sums, weights)
            accumulate_values(v_pages, head_page, next_head_page, weights, row0, num_visible, outputs)

    return SimpleNamespace(start=start, update=update)
