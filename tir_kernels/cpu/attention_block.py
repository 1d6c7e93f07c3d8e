"""Online softmax over the pages of a packed KV cache, a few query rows at a time: what prefill and decode share.

Flash attention (Dao et al., arXiv:2205.14135) in base 2. A row keeps its running maximum m, the sum of 2**(score - m)
by vector lane, and the weighted sum of values. Rescaling is lazy: m only moves when a score exceeds it by more than 8;
weights then stay below 2**8 and the result, a ratio, is the same.
"""

from types import SimpleNamespace

from tvm.script import tirx as T

from .attention_float import float_softmax
from .attention_int8 import int8_softmax
from .attention_shape import AttentionShape
from .attention_task import NEVER, task_scratch
from .scratch import stack_buffer
from .unpacked_pages import unpacked_pages

_CACHE_LINE = 16  # words
# A CPU drops prefetches when its queue is full, so every line is asked for several times, some pages ahead of its use.
_MAX_PREFETCH_PAGES = 5
_PREFETCH_BYTES = 128 << 10  # a part of the L2 cache


def attention_block(shape: AttentionShape, sm_scale: float, prefetching_blocks: int) -> SimpleNamespace:
    """TVMScript statements: ``scratch(rows)``, ``upcoming(...)``, ``start(...)``, ``enter(...)``, ``update(...)``,
    ``finish(...)``.

    A row is one query head of one token; row = token * group + head within the group. A page is entered once, before
    its updates. The first ``prefetching_blocks`` row blocks of a task ask for the pages that come next, if they are
    given any.
    """
    if shape.pages.is_int8 and not shape.int8_dot:
        return unpacked_pages(shape, attention_block(shape.unpacked, sm_scale, prefetching_blocks))
    isa, L, R, g, d = shape.isa, shape.isa.lanes, shape.row_block, shape.group, shape.head_dim
    page, P, ramp = shape.page_size, shape.pair, isa.ramp
    key_block, dim_block = shape.key_block, shape.dim_block
    vectors = page // L
    page_lines = shape.pages.key_rows * page // _CACHE_LINE
    lines_per_row = -(-page_lines // (prefetching_blocks * R))
    prefetch_pages = max(1, min(_MAX_PREFETCH_PAGES, _PREFETCH_BYTES // (2 * page_lines * _CACHE_LINE * 4)))

    @T.inline
    def prefetch_share(pages, head_page, row):
        """The lines of ``head_page`` that one row of the prefetching blocks asks for."""
        for line in T.serial(lines_per_row):
            T.evaluate(isa.prefetch(pages[head_page, 0, (row * lines_per_row + line) * _CACHE_LINE, 0]))

    @T.inline
    def ask_ahead(k_pages, v_pages, head_page, next_pages, row0, i):
        """While row ``i`` of a block computes weights the memory has time: for what is needed soon and missing."""
        if len(next_pages) > 0:
            if row0 < prefetching_blocks * R:
                prefetch_share(v_pages, head_page, row0 + i)
                prefetch_share(k_pages, next_pages[0], row0 + i)

    softmax = (int8_softmax if shape.int8_dot else float_softmax)(shape, sm_scale, ask_ahead)

    def scratch(rows: int):
        return T.meta_var(task_scratch(shape, rows, softmax.pages(rows)))

    def upcoming(page_indices, first, p, count):
        """The pages that follow page ``p`` of the ``count`` that a sequence has in page_indices from ``first`` on."""
        following = (T.min(p + ahead, count - 1) for ahead in range(1, prefetch_pages + 1))
        return T.meta_var([T.Bind(T.cast(page_indices[first + i], "int64")) for i in following])

    @T.inline
    def start(q, token0, head, num_rows, num_padded_rows, s):
        """Copy the queries of kv head ``head`` from token ``token0`` on and reset the state; padding rows are zero."""
        for r in T.serial(num_padded_rows):
            if r >= num_rows:
                softmax.clear_query(r, s)
            else:
                softmax.store_query(q, token0 + r // g, head * g + r % g, r, s)
            s.maxima[r] = T.float32(NEVER)
            s.sums[r, ramp(0)] = isa.zero()
            for v in T.serial(d // L):
                s.outputs[r, ramp(v * L)] = isa.zero()

    @T.inline
    def finish(out, token0, head, num_rows, s):
        """Write the normalised rows to the place from which ``start`` read their queries."""
        for r in T.serial(num_rows):
            norm: T.let = T.float32(1) / isa.hsum(s.sums[r, ramp(0)])
            for v in T.serial(d // L):
                isa.store(out, s.outputs[r, ramp(v * L)] * isa.splat(norm), token0 + r // g, head * g + r % g, v * L)

    @T.inline
    def multiply(add, acc, width, operands, row0, word, pages, head_page, column, only_first):
        """acc[row, :width] += operands[row0 + row, word] * pages[head_page, word, column:][:width] for a row block."""
        for v in T.unroll(width // L):
            for i in T.unroll(R):
                acc[ramp(i * width + v * L)] = add(
                    acc[ramp(i * width + v * L)],
                    operands,
                    row0 + i,
                    word,
                    shape.page_words(pages, head_page, word, column + v * L, only_first),
                )

    def prefetch(pages, next_pages, word, column, width: int, row0) -> None:
        """Each prefetching block asks for some of the next pages, at the place where this page is being read."""
        for b in range(min(prefetching_blocks, len(next_pages))):
            with T.If(row0 == b * R), T.Then():
                for page_ahead in next_pages[b::prefetching_blocks]:
                    for start_of_line in range(0, width, _CACHE_LINE):
                        T.evaluate(isa.prefetch(pages[page_ahead, word, column + start_of_line, 0]))

    @T.inline
    def compute_scores(k_pages, head_page, next_pages, row0, s):
        for kb in T.serial(page // key_block):
            with T.sblock("scores"):
                T.reads()
                T.writes()
                acc = stack_buffer(R * key_block, shape.sum_dtype)
                for i in T.unroll(R):
                    for v in T.unroll(key_block // L):
                        acc[ramp(i * key_block + v * L)] = softmax.first_sum(row0 + i, s)
                for c in T.serial(d // P):
                    prefetch(k_pages, next_pages, c, kb * key_block, key_block, row0)
                    multiply(
                        shape.add_scores,
                        acc,
                        key_block,
                        s.queries,
                        row0,
                        c,
                        k_pages,
                        head_page,
                        kb * key_block,
                        only_first=False,
                    )
                for i in T.unroll(R):
                    for v in T.unroll(key_block // L):
                        s.scores[i, ramp(kb * key_block + v * L)] = softmax.score(
                            acc[ramp(i * key_block + v * L)], k_pages, head_page, kb * key_block + v * L
                        )

    def visible(visible0, row, causal: bool):
        """How many entries of a page ``row`` sees."""
        return visible0 + row // g if causal else visible0

    @T.inline
    def mask_scores(row0, visible0, causal, s):
        for i in T.serial(R):
            for v in T.serial(vectors):
                s.scores[i, ramp(v * L)] = T.Select(
                    T.ramp(v * L, 1, L) < T.broadcast(visible(visible0, row0 + i, causal), L),
                    s.scores[i, ramp(v * L)],
                    isa.splat(T.float32(NEVER)),
                )

    @T.inline
    def accumulate_values(v_pages, head_page, next_pages, row0, num_visible, s):
        for db in T.serial(d // dim_block):
            with T.sblock("values"):
                T.reads()
                T.writes()
                acc = stack_buffer(R * dim_block, shape.sum_dtype)
                for i in T.unroll(R):
                    for v in T.unroll(dim_block // L):
                        acc[ramp(i * dim_block + v * L)] = softmax.first_output(row0, i, db * dim_block + v * L, s)
                for t in T.serial(num_visible // P):
                    prefetch(v_pages, next_pages, t, db * dim_block, dim_block, row0)
                    multiply(
                        shape.add_values,
                        acc,
                        dim_block,
                        s.weights,
                        0,
                        t,
                        v_pages,
                        head_page,
                        db * dim_block,
                        only_first=False,
                    )
                if num_visible % P > 0:
                    multiply(
                        shape.add_values,
                        acc,
                        dim_block,
                        s.weights,
                        0,
                        num_visible // P,
                        v_pages,
                        head_page,
                        db * dim_block,
                        only_first=True,
                    )
                for i in T.unroll(R):
                    for v in T.unroll(dim_block // L):
                        s.outputs[row0 + i, ramp(db * dim_block + v * L)] = softmax.output(
                            acc[ramp(i * dim_block + v * L)], row0, i, db * dim_block + v * L, s
                        )

    @T.inline
    def update(k_pages, v_pages, head_page, next_pages, row0, visible0, num_rows, s, causal=True):
        """The row block from ``row0`` on meets a page, of which row r sees the first ``visible0 + r // group`` entries,
        or just ``visible0`` without ``causal``.

        What the page holds beyond the entries that rows below ``num_rows`` see has no influence, be it NaN. The first
        row blocks ask for ``next_pages`` meanwhile. The pages may also be words in a scratch buffer (``page_words``).
        """
        num_visible: T.let = T.min(visible(visible0, T.min(row0 + R, num_rows) - 1, causal), page)
        if num_visible > 0:
            compute_scores(k_pages, head_page, next_pages, row0, s)
            if visible(visible0, row0, causal) < page:
                mask_scores(row0, visible0, causal, s)
            softmax.soften(k_pages, v_pages, head_page, next_pages, row0, s)
            accumulate_values(v_pages, head_page, next_pages, row0, num_visible, s)

    return SimpleNamespace(
        scratch=scratch, upcoming=upcoming, start=start, enter=softmax.enter, update=update, finish=finish
    )
