"""Exact top-k of a float32 row inside a kernel: the threshold by bisection, then the indices in ascending order.

The bisection runs over the int32 keys that order float32 values, so it ends after at most 32 counts of the row; it
stops sooner where exactly k values lie at or above a key. Ties go to the lower index. Rows without NaN; -inf and both
zeros (which are equal) are fine.
"""

from types import SimpleNamespace

from tvm.script import tirx as T

from .isa import VectorISA
from .scratch import stack_buffer

_SIGN_OF_KEY = 0x7FFFFFFF
_LOWEST_KEY = -0x7F800001  # of -inf
_HIGHEST_KEY = 0x7F800000  # of +inf
_NAN_KEY = 0x7FC00000


def _value_of_key(key):
    """float32 with this int32 key; keys order like the values. Key -1 is -0.0."""
    return T.reinterpret("float32", T.bitwise_xor(key, T.bitwise_and(T.shift_right(key, 31), _SIGN_OF_KEY)))


def _lowest_bit(mask):
    """Index of the lowest bit of an int32 that is not 0."""
    return T.int32(31) - T.cast(T.clz(T.bitwise_and(mask, T.int32(0) - mask)), "int32")


def top_k(isa: VectorISA) -> SimpleNamespace:
    """TVMScript statements; ``row`` is the tuple of the leading indices of a row in its buffer, cells are int32 [1].

    ``count_at_least(scores, row, first, end, value, total)``
        total[0] += how many of scores[row, first:end] are at least ``value``.
    ``kth_largest(count, k, bounds)``
        bounds float32 [2]: of the values that ``count(value, total)`` counts (into the cell ``total``, as
        count_at_least does; over one row or several), k or more are at least bounds[0] and k or fewer are at least
        bounds[1], and those between are equal. bounds[0] is -inf if there are fewer than k values.
    ``append_at_least(scores, row, first, end, bounds, num_ties, lists, list_row, written)``
        append the indices in [first, end) of the values that are at least bounds[1], and of the first num_ties[0] of
        those between bounds[0] and it, in ascending order to lists[list_row, written[0]:] (int32). Counts the cell
        ``written`` up and the cell ``num_ties`` down.
    ``append_top_k(scores, row, first, end, k, lists, list_row, written)``
        append the ascending indices of the min(k, end - first) largest of scores[row, first:end].
    """
    L = isa.lanes

    @T.inline
    def count_at_least(scores, row, first, end, value, total):
        with T.sblock("count"):
            T.reads()
            T.writes()
            counts = stack_buffer(L, "int32")
            vectors: T.let = T.max(end - first, 0) // L
            tail: T.let = first + vectors * L
            counts[isa.ramp(0)] = isa.splat(T.int32(0))
            for v in T.serial(vectors):
                counts[isa.ramp(0)] = counts[isa.ramp(0)] + T.Select(
                    isa.load(scores, *row, first + v * L) >= isa.splat(value),
                    isa.splat(T.int32(1)),
                    isa.splat(T.int32(0)),
                )
            for i in T.unroll(L):
                total[0] = total[0] + counts[i]
            for i in T.serial(T.max(end - tail, 0)):
                total[0] = total[0] + T.Select(scores[(*row, tail + i)] >= value, 1, 0)

    @T.inline
    def kth_largest(count, k, bounds):
        with T.sblock("kth_largest"):
            T.reads()
            T.writes()
            low = stack_buffer(1, "int32")  # k values or more are at or above this key, or it is the lowest
            high = stack_buffer(1, "int32")  # fewer than k are above it, or exactly k at or above both
            total = stack_buffer(1, "int32")
            low[0] = _LOWEST_KEY
            high[0] = _HIGHEST_KEY
            while low[0] < high[0]:
                # ceil((low + high) / 2) without overflow
                middle: T.let = T.bitwise_or(low[0], high[0]) - T.shift_right(T.bitwise_xor(low[0], high[0]), 1)
                total[0] = 0
                count(_value_of_key(middle), total)
                if total[0] < k:
                    high[0] = middle - 1
                else:
                    low[0] = middle
                    if total[0] == k:
                        high[0] = middle
            bounds[0] = _value_of_key(low[0])
            bounds[1] = _value_of_key(low[0] + 1)  # a NaN above +inf: nothing is at least that

    @T.inline
    def append_vector(values, first, bounds, num_ties, lists, list_row, written):
        with T.sblock("append"):
            T.reads()
            T.writes()
            left = stack_buffer(1, "int32")
            above: T.let = isa.at_least_mask(values, isa.splat(bounds[1]))
            left[0] = T.Select(num_ties[0] > 0, isa.at_least_mask(values, isa.splat(bounds[0])), above)
            while left[0] != 0:
                lane: T.let = _lowest_bit(left[0])
                tie: T.let = 1 - T.bitwise_and(T.shift_right(above, lane), 1)
                if tie <= T.max(num_ties[0], 0):
                    lists[(*list_row, written[0])] = T.cast(first, "int32") + lane
                    written[0] = written[0] + 1
                    num_ties[0] = num_ties[0] - tie
                left[0] = T.bitwise_and(left[0], left[0] - 1)

    @T.inline
    def append_at_least(scores, row, first, end, bounds, num_ties, lists, list_row, written):
        vectors: T.let = T.max(end - first, 0) // L
        tail: T.let = first + vectors * L
        for v in T.serial(vectors):
            append_vector(
                isa.load(scores, *row, first + v * L), first + v * L, bounds, num_ties, lists, list_row, written
            )
        if tail < end:
            mask: T.let = isa.tail_mask(tail, end)
            # NaN is not at least anything, so the lanes beyond the end are never taken.
            last: T.let = T.Select(mask, isa.load(scores, *row, tail, mask=mask), isa.splat(_value_of_key(_NAN_KEY)))
            append_vector(last, tail, bounds, num_ties, lists, list_row, written)

    @T.inline
    def append_top_k(scores, row, first, end, k, lists, list_row, written):
        with T.sblock("top_k"):
            T.reads()
            T.writes()
            bounds = stack_buffer(2)
            num_above = stack_buffer(1, "int32")
            num_ties = stack_buffer(1, "int32")

            @T.inline
            def count(value, total):
                count_at_least(scores, row, first, end, value, total)

            kth_largest(count, k, bounds)
            num_above[0] = 0
            count(bounds[1], num_above)
            num_ties[0] = k - num_above[0]
            append_at_least(scores, row, first, end, bounds, num_ties, lists, list_row, written)

    return SimpleNamespace(
        count_at_least=count_at_least,
        kth_largest=kth_largest,
        append_at_least=append_at_least,
        append_top_k=append_top_k,
    )
