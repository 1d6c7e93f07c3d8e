"""Exact top-k of float32 rows by the threads of a block: the threshold digit by digit, then the ascending indices.

The search runs over the int32 keys that order float32 values, two bits a pass: sixteen passes that count how many keys
are at least each of three candidates. Ties go to the lower index. Rows without NaN; -inf and both zeros (which are
equal) are fine.
"""

from types import SimpleNamespace

from tvm.script import tirx as T

from .thread_block import thread_block

_BITS = 2  # of a digit
_CANDIDATES = (1 << _BITS) - 1
_LOWEST_KEY = -(2**31)


def _order_key(value):
    """int32 that orders like the float32 ``value``; both zeros have the same."""
    bits = T.reinterpret("int32", value)
    key = T.bitwise_xor(bits, T.bitwise_and(T.shift_right(bits, 31), 0x7FFFFFFF))
    return T.Select(key == -1, 0, key)


def top_k(threads: int) -> SimpleNamespace:
    """TVMScript statements for all ``threads`` threads of a block; ``row`` is the tuple of the leading indices of a row
    in its buffer, ``found`` is local int32 [2].

    ``scratch()``
        the shared memory that all of them take.
    ``tally(scores, row, first, end, thread, candidates, counts)``
        counts[j] += how many of this thread's share of scores[row, first:end] are at least candidates[j] (keys).
    ``kth_largest(scratch, thread, tally_all, k, found)``
        found = key of the k-th largest of the values that ``tally_all(candidates, counts)`` tallies, over one row or
        several, and how many are above it; the lowest key if there are fewer than k values.
    ``count(scratch, scores, row, first, end, thread, found, counts)``
        counts = how many of scores[row, first:end] are above the key found[0], and how many are equal; in all threads.
    ``append(scratch, scores, row, first, end, thread, k, found, lists, list_row, start)``
        the ascending indices of the values above found[0], and of the first k - found[1] equal ones, to
        lists[list_row, start:].
    ``append_top_k(scratch, scores, row, first, end, thread, k, lists, list_row, start)``
        the ascending indices of the min(k, end - first) largest of scores[row, first:end].
    """
    block = thread_block(threads)

    def scratch():
        candidates = block.scratch(_CANDIDATES, "int32")
        pair = block.scratch(2, "int32")
        return SimpleNamespace(candidates=candidates, pair=pair)

    @T.inline
    def tally(scores, row, first, end, thread, candidates, counts):
        for i in T.serial(T.ceildiv(T.max(end - first - thread, 0), threads)):
            key: T.let = _order_key(scores[(*row, first + thread + i * threads)])
            for j in T.unroll(_CANDIDATES):
                counts[j] = counts[j] + T.Select(key >= candidates[j], 1, 0)

    @T.inline
    def kth_largest(shared, thread, tally_all, k, found):
        candidates = T.alloc_buffer((_CANDIDATES,), "int32", scope="local")
        counts = T.alloc_buffer((_CANDIDATES,), "int32", scope="local")
        found[0] = _LOWEST_KEY // 2
        found[0] = found[0] * 2  # WebGPU has no literal for the lowest int32
        found[1] = 0
        for digit in T.serial(32 // _BITS):
            step: T.let = T.shift_left(1, 32 - _BITS - _BITS * digit)
            candidates[0] = found[0] + step
            for j in T.unroll(_CANDIDATES - 1):
                candidates[j + 1] = candidates[j] + step
            for j in T.unroll(_CANDIDATES):
                counts[j] = 0
            tally_all(candidates, counts)
            block.combine(shared.candidates, thread, counts, lambda a, b: a + b)
            for j in T.unroll(_CANDIDATES):
                if counts[j] >= k:
                    found[0] = candidates[j]
            for j in T.unroll(_CANDIDATES):
                if counts[_CANDIDATES - 1 - j] < k:
                    found[1] = counts[_CANDIDATES - 1 - j]

    @T.inline
    def count(shared, scores, row, first, end, thread, found, counts):
        counts[0] = 0
        counts[1] = 0
        for i in T.serial(T.ceildiv(T.max(end - first - thread, 0), threads)):
            key: T.let = _order_key(scores[(*row, first + thread + i * threads)])
            counts[0] = counts[0] + T.Select(key > found[0], 1, 0)
            counts[1] = counts[1] + T.Select(key == found[0], 1, 0)
        block.combine(shared.pair, thread, counts, lambda a, b: a + b)

    @T.inline
    def append(shared, scores, row, first, end, thread, k, found, lists, list_row, start):
        """Every thread takes a range of the row: where it writes to depends on the threads before it only."""
        before = T.alloc_buffer((2,), "int32", scope="local")
        written = T.alloc_buffer((1,), "int32", scope="local")
        ties = T.alloc_buffer((1,), "int32", scope="local")  # equal values that may be taken still
        share: T.let = T.ceildiv(T.max(end - first, 0), threads)
        begin: T.let = first + thread * share
        size: T.let = T.max(T.min(share, end - begin), 0)
        before[0] = 0
        before[1] = 0
        for i in T.serial(size):
            key: T.let = _order_key(scores[(*row, begin + i)])
            before[0] = before[0] + T.Select(key > found[0], 1, 0)
            before[1] = before[1] + T.Select(key == found[0], 1, 0)
        block.exclusive_sums(shared.pair, thread, before)
        ties[0] = T.max(k - found[1], 0)
        written[0] = start + before[0] + T.min(before[1], ties[0])
        ties[0] = ties[0] - before[1]
        for i in T.serial(size):
            key: T.let = _order_key(scores[(*row, begin + i)])
            if key > found[0] or (key == found[0] and ties[0] > 0):
                lists[(*list_row, written[0])] = begin + i
                written[0] = written[0] + 1
            ties[0] = ties[0] - T.Select(key == found[0], 1, 0)

    @T.inline
    def append_top_k(shared, scores, row, first, end, thread, k, lists, list_row, start):
        found = T.alloc_buffer((2,), "int32", scope="local")

        @T.inline
        def tally_row(candidates, counts):
            tally(scores, row, first, end, thread, candidates, counts)

        kth_largest(shared, thread, tally_row, k, found)
        append(shared, scores, row, first, end, thread, k, found, lists, list_row, start)

    return SimpleNamespace(
        scratch=scratch, tally=tally, kth_largest=kth_largest, count=count, append=append, append_top_k=append_top_k
    )
