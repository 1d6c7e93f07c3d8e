"""Which entries of the KV cache a compression keeps: SnapKV's pooled top-k, or AdaKV's split between the heads.

SnapKV: Li et al., arXiv:2404.14469; EntropyInfer's latent compression selects alike. AdaKV: Feng et al.,
arXiv:2407.11550, Algorithm 1.
"""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .isa import VectorISA
from .scratch import stack_buffer
from .top_k import top_k

_ROUND_TO_INTEGER = 1.5 * 2.0**52  # added and taken away again: the nearest integer, the even one of two


def select_entries(num_key_value_heads: int, isa: VectorISA) -> PrimFunc:
    """(scores, kv_lengths, kept, kept_lengths, capacity, tail, pooling_kernel, use_max, adaptive, adaptive_alpha).

    scores : float32 [G, max_len], not negative, as :func:`window_scores` writes them; kv_lengths : int32 [G]
    kept : int32 [G, max_kept], ascending entries of each head, kept_lengths[h] of them; kept_lengths : int32 [G].
        An error is raised if max_kept is too small.
    capacity, tail, pooling_kernel, use_max, adaptive : int64; adaptive_alpha : float64

    The ``tail`` newest entries of a head are always kept. Those below are ranked by their scores after pooling (stride
    1, same length, over the scores below the tail only): the average with zero padding that counts, or the maximum
    with ``use_max``; pooling_kernel is odd. Ties go to the lower entry. Each head keeps its ``capacity - tail`` best.

    ``adaptive``: c_h of the G (capacity - tail) best of all heads together lie in head h (ties go to the lower head),
    which then keeps its round(c_h (1 - adaptive_alpha) + int(adaptive_alpha (capacity - tail))) best. The rounding
    lets the heads together exceed G (capacity - tail) by at most G / 2.
    """
    G, L, ramp = num_key_value_heads, isa.lanes, isa.ramp
    selection = top_k(isa)

    def below_tail(kv_lengths, head, tail):
        """How many entries of a head compete; int32."""
        return T.max(kv_lengths[head] - T.cast(tail, "int32"), 0)

    @T.inline
    def pool(scores, head, count, pooling_kernel, use_max, pooled):
        """The sum (it ranks like the average) or the maximum around each of the first ``count`` scores."""
        half: T.let = T.cast(pooling_kernel // 2, "int32")
        vectors: T.let = T.max(count - 2 * half, 0) // L
        rest: T.let = half + vectors * L
        for v in T.serial(vectors):
            base: T.let = half + v * L
            value = stack_buffer(L)
            value[ramp(0)] = isa.load(scores, head, base - half)
            for offset in T.serial(1, 2 * half + 1):
                other: T.let = isa.load(scores, head, base - half + offset)
                value[ramp(0)] = T.Select(use_max != 0, isa.vmax(value[ramp(0)], other), value[ramp(0)] + other)
            isa.store(pooled, value[ramp(0)], head, base)
        for i in T.serial(T.min(half, count) + T.max(count - rest, 0)):
            center: T.let = T.Select(i < half, i, rest + i - half)
            total = stack_buffer(1)
            total[0] = T.float32(0)
            for entry in T.serial(T.max(center - half, 0), T.min(center + half + 1, count)):
                total[0] = T.Select(use_max != 0, T.max(total[0], scores[head, entry]), total[0] + scores[head, entry])
            pooled[head, center] = total[0]

    @T.inline
    def split(pooled, kv_lengths, tail, base, alpha, budgets):
        """AdaKV's budgets; ``base`` is capacity - tail, int32."""
        with T.sblock("split"):
            T.reads()
            T.writes()
            bounds = stack_buffer(2)
            num_above = stack_buffer(G, "int32")
            num_ties = stack_buffer(G, "int32")
            free = stack_buffer(1, "int32")
            rounded = stack_buffer(1, "float64")  # memory, or TVM cancels the addition and the subtraction

            @T.inline
            def count(value, total):
                for h in T.serial(G):
                    selection.count_at_least(pooled, (h,), 0, below_tail(kv_lengths, h, tail), value, total)

            @T.inline
            def count_head(head, value, totals):
                total = stack_buffer(1, "int32")
                total[0] = 0
                selection.count_at_least(pooled, (head,), 0, below_tail(kv_lengths, head, tail), value, total)
                totals[head] = total[0]

            selection.kth_largest(count, G * base, bounds)
            free[0] = G * base
            for head in T.serial(G):
                count_head(head, bounds[1], num_above)
                count_head(head, bounds[0], num_ties)
                free[0] = free[0] - num_above[head]
            for head in T.serial(G):
                taken: T.let = T.min(num_ties[head] - num_above[head], free[0])
                free[0] = free[0] - taken
                share: T.let = T.cast(num_above[head] + taken, "float64") * (T.float64(1) - alpha)
                floor: T.let = T.cast(T.cast(alpha * T.cast(base, "float64"), "int32"), "float64")
                rounded[0] = share + floor + T.float64(_ROUND_TO_INTEGER)
                budgets[head] = T.cast(rounded[0] - T.float64(_ROUND_TO_INTEGER), "int32")

    @T.prim_func(s_tir=True)
    def kv_select_entries(
        scores_handle: T.handle,
        kv_lengths_handle: T.handle,
        kept_handle: T.handle,
        kept_lengths_handle: T.handle,
        capacity: T.int64,
        tail: T.int64,
        pooling_kernel: T.int64,
        use_max: T.int64,
        adaptive: T.int64,
        adaptive_alpha: T.float64,
    ):
        T.func_attr({"global_symbol": "kv_select_entries", "tirx.noalias": True, "tirx.is_scheduled": True})
        max_len = T.int64()
        max_kept = T.int64()
        scores = T.match_buffer(scores_handle, (G, max_len), "float32")
        kv_lengths = T.match_buffer(kv_lengths_handle, (G,), "int32")
        kept = T.match_buffer(kept_handle, (G, max_kept), "int32")
        kept_lengths = T.match_buffer(kept_lengths_handle, (G,), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            pooled = T.sblock_alloc_buffer((G, max_len), "float32")
            budgets = T.sblock_alloc_buffer((G,), "int32")
            base: T.let = T.cast(T.max(capacity - tail, T.int64(0)), "int32")
            with isa.helpers():
                for head in T.parallel(G):
                    with T.sblock("pool"):
                        T.reads()
                        T.writes()
                        pool(scores, head, below_tail(kv_lengths, head, tail), pooling_kernel, use_max, pooled)
                if adaptive != 0:
                    split(pooled, kv_lengths, tail, base, adaptive_alpha, budgets)
                else:
                    for head in T.serial(G):
                        budgets[head] = base
                for head in T.serial(G):
                    needed: T.let = kv_lengths[head] - T.max(below_tail(kv_lengths, head, tail) - budgets[head], 0)
                    assert needed <= T.cast(max_kept, "int32"), "kv_select_entries: max_kept is too small"
                for head in T.parallel(G):
                    with T.sblock("select"):
                        T.reads()
                        T.writes()
                        written = T.sblock_alloc_buffer((1,), "int32")
                        count: T.let = below_tail(kv_lengths, head, tail)
                        written[0] = 0
                        selection.append_top_k(pooled, (head,), 0, count, budgets[head], kept, (head,), written)
                        for i in T.serial(kv_lengths[head] - count):
                            kept[head, written[0] + i] = count + i
                        kept_lengths[head] = written[0] + kv_lengths[head] - count

    return kv_select_entries
