"""The softmax of a window of queries over all entries, in two passes over the pages: sums of parts, then weights."""

from tvm.script import tirx as T

from .attention_block import NEVER
from .isa import VectorISA


def window_softmax(isa: VectorISA, group: int, window: int, row_block: int, vectors: int, parts: int) -> tuple:
    """The inline functions ``add_to_sums``, ``merge_parts`` and ``add_to_means``.

    A row is a query of one head of ``group``, its age first, and sees one entry more than that of the age before.
    ``s`` are float32 scores [row_block, vectors * L] in base 2 units of the rows from ``row0`` on for one page, of
    which row 0 sees ``visible0`` entries; ``partial``: some row sees less than the whole page.
    """
    L, ramp, R, g = isa.lanes, isa.ramp, row_block, group
    rows = window * g

    def seen(v, visible0, row):
        """Which lanes of vector ``v`` of a page ``row`` sees, if row 0 sees ``visible0`` entries of the page."""
        return T.ramp(v * L, 1, L) < T.broadcast(visible0 + row // g, L)

    @T.inline
    def add_to_sums(s, row0, visible0, partial, maxima, sums):
        """Lane by lane: the running maximum and the sum of 2**(score - maximum) of each row."""
        with T.sblock("sums"):
            T.reads()
            T.writes()
            peak = T.sblock_alloc_buffer((L,), "float32")
            total = T.sblock_alloc_buffer((L,), "float32")
            for i in T.unroll(R):
                peak[ramp(0)] = maxima[row0 + i, ramp(0)]
                for v in T.unroll(vectors):
                    if partial:
                        s[i, ramp(v * L)] = T.Select(
                            seen(v, visible0, row0 + i), s[i, ramp(v * L)], isa.splat(T.float32(NEVER))
                        )
                    peak[ramp(0)] = isa.vmax(peak[ramp(0)], s[i, ramp(v * L)])
                total[ramp(0)] = sums[row0 + i, ramp(0)] * isa.exp2(maxima[row0 + i, ramp(0)] - peak[ramp(0)])
                for v in T.unroll(vectors):
                    e: T.let = isa.exp2(s[i, ramp(v * L)] - peak[ramp(0)])
                    counted: T.let = T.Select(seen(v, visible0, row0 + i), e, isa.zero()) if partial else e
                    total[ramp(0)] = total[ramp(0)] + counted
                maxima[row0 + i, ramp(0)] = peak[ramp(0)]
                sums[row0 + i, ramp(0)] = total[ramp(0)]

    @T.inline
    def add_to_means(s, row0, visible0, partial, first, row_maxima, row_weights, means):
        for i in T.unroll(R):
            for v in T.unroll(vectors):
                e: T.let = isa.exp2(s[i, ramp(v * L)] - isa.splat(row_maxima[first + i]))
                counted: T.let = T.Select(seen(v, visible0, row0 + i), e, isa.zero()) if partial else e
                means[ramp(v * L)] = means[ramp(v * L)] + counted * isa.splat(row_weights[first + i])

    @T.inline
    def merge_parts(row, part_maxima, part_sums, row_maxima, row_weights):
        maximum = T.sblock_alloc_buffer((1,), "float32")
        total = T.sblock_alloc_buffer((1,), "float32")
        maximum[0] = T.float32(NEVER)
        for part in T.serial(parts):
            maximum[0] = T.max(maximum[0], part_maxima[row, part])
        total[0] = T.float32(0)
        for v in T.serial(parts // L):
            factors: T.let = isa.exp2(part_maxima[row, ramp(v * L)] - isa.splat(maximum[0]))
            total[0] = total[0] + isa.hsum(part_sums[row, ramp(v * L)] * factors)
        row_maxima[row] = maximum[0]
        row_weights[row] = T.Select(total[0] > T.float32(0), T.float32(1 / rows) / total[0], T.float32(0))

    return add_to_sums, merge_parts, add_to_means
