"""Which entries of the KV cache a compression keeps: SnapKV's pooled top-k, or AdaKV's split between the heads.

SnapKV: Li et al., arXiv:2404.14469; EntropyInfer's latent compression selects alike. AdaKV: Feng et al.,
arXiv:2407.11550, Algorithm 1.
"""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .features import GPUFeatures
from .thread_block import num_threads
from .top_k import top_k

_UNIT = 10000  # of adaptive_alpha: exact products of integers, where a GPU may have no float64


def select_entries(num_key_value_heads: int, gpu: GPUFeatures) -> PrimFunc:
    """(scores, kv_lengths, kept, kept_lengths, capacity, tail, pooling_kernel, use_max, adaptive, adaptive_alpha).

    The arguments and what is kept are those of :func:`tir_kernels.cpu.select_entries.select_entries`, with these
    differences. An error is raised if max_kept is less than heads of ``max_len`` entries could need, since the lengths
    are not known to the host: min(max_len, max(capacity, tail)), or with ``adaptive``
    min(max_len, tail + G (capacity - tail)). adaptive_alpha counts to four decimals.

    A block of threads ranks a head; one block splits the budget, in float32 keys and integers.
    """
    G = num_key_value_heads
    threads = num_threads(gpu, 512)
    selection = top_k(threads)

    def below_tail(kv_lengths, head, tail):
        """How many entries of a head compete."""
        return T.max(kv_lengths[head] - tail, 0)

    @T.inline
    def pool(scores, head, count, i, half, use_max, pooled):
        """The sum (it ranks like the average) or the maximum around score ``i`` of the first ``count``."""
        total = T.alloc_buffer((1,), "float32", scope="local")
        first: T.let = T.max(i - half, 0)
        total[0] = scores[head, first]
        for j in T.serial(T.min(i + half, count - 1) - first):
            score: T.let = scores[head, first + j + 1]
            total[0] = T.Select(use_max != 0, T.max(total[0], score), total[0] + score)
        pooled[head, i] = total[0]

    @T.inline
    def split(pooled, kv_lengths, tail, base, share, floor, thread, budgets):
        """AdaKV's budgets: round(c_h * share / _UNIT) + floor, ``share`` and ``floor`` of the arguments' alpha."""
        shared = T.meta_var(selection.scratch())
        found = T.alloc_buffer((2,), "int32", scope="local")
        counts = T.alloc_buffer((2,), "int32", scope="local")  # of a head: above the threshold, and at it
        free = T.alloc_buffer((1,), "int32", scope="local")  # values at the threshold that may be taken still

        @T.inline
        def tally(candidates, counts):
            for head in T.serial(G):
                count: T.let = below_tail(kv_lengths, head, tail)
                selection.tally(pooled, (head,), 0, count, thread, candidates, counts)

        selection.kth_largest(shared, thread, tally, G * base, found)
        free[0] = T.max(G * base - found[1], 0)
        for head in T.serial(G):
            count: T.let = below_tail(kv_lengths, head, tail)
            selection.count(shared, pooled, (head,), 0, count, thread, found, counts)
            chosen: T.let = counts[0] + T.min(counts[1], free[0])
            # In two parts: chosen * share may exceed an int32.
            product: T.let = chosen % _UNIT * share
            whole: T.let = chosen // _UNIT * share + product // _UNIT + floor
            rest: T.let = product % _UNIT * 2
            up: T.let = rest > _UNIT or (rest == _UNIT and whole % 2 == 1)  # the even one of two
            free[0] = free[0] - T.min(counts[1], free[0])
            if thread == 0:
                budgets[head] = whole + T.Select(up, 1, 0)

    @T.inline
    def select(pooled, kv_lengths, tail, budget, head, thread, kept, kept_lengths):
        shared = T.meta_var(selection.scratch())
        count: T.let = below_tail(kv_lengths, head, tail)
        best: T.let = T.max(T.min(budget, count), 0)
        selection.append_top_k(shared, pooled, (head,), 0, count, thread, best, kept, (head,), 0)
        for i in T.serial(T.ceildiv(T.max(kv_lengths[head] - count - thread, 0), threads)):
            kept[head, best + thread + i * threads] = count + thread + i * threads
        if thread == 0:
            kept_lengths[head] = best + kv_lengths[head] - count

    @T.prim_func(s_tir=True)
    def kv_select_entries(
        scores_handle: T.handle,
        kv_lengths_handle: T.handle,
        kept_handle: T.handle,
        kept_lengths_handle: T.handle,
        capacity: T.int64,
        tail_entries: T.int64,
        pooling_kernel: T.int64,
        use_max: T.int64,
        adaptive: T.int64,
        adaptive_alpha: T.float64,
    ):
        T.func_attr({"global_symbol": "kv_select_entries", "tirx.noalias": True, "tirx.is_scheduled": True})
        max_len = T.int32()
        max_kept = T.int32()
        scores = T.match_buffer(scores_handle, (G, max_len), "float32")
        kv_lengths = T.match_buffer(kv_lengths_handle, (G,), "int32")
        kept = T.match_buffer(kept_handle, (G, max_kept), "int32")
        kept_lengths = T.match_buffer(kept_lengths_handle, (G,), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            pooled = T.sblock_alloc_buffer((G, max_len), "float32")
            budgets = T.sblock_alloc_buffer((G,), "int32")
            tail: T.let = T.cast(tail_entries, "int32")
            base: T.let = T.cast(T.max(capacity - tail_entries, T.int64(0)), "int32")
            half: T.let = T.cast(pooling_kernel // 2, "int32")
            is_max: T.let = T.cast(use_max, "int32")
            is_adaptive: T.let = T.cast(adaptive, "int32")
            # The product is rounded to the nearest integer; a value on a grid of four decimals is met exactly.
            share: T.let = T.cast((T.float64(1) - adaptive_alpha) * T.float64(_UNIT) + T.float64(0.5), "int32")
            floor: T.let = T.cast(adaptive_alpha * T.cast(base, "float64"), "int32")
            needed: T.let = T.min(tail + T.Select(is_adaptive != 0, G * base, base), max_len)
            assert needed <= max_kept, "kv_select_entries: max_kept is too small"
            if max_len > 0:
                with (
                    T.launch_thread("blockIdx.x", G * T.ceildiv(max_len, threads)) as block,
                    T.launch_thread("threadIdx.x", threads) as thread,
                ):
                    i: T.let = block // G * threads + thread
                    count: T.let = below_tail(kv_lengths, block % G, tail)
                    if i < count:
                        pool(scores, block % G, count, i, half, is_max, pooled)
                if is_adaptive != 0:
                    with T.launch_thread("blockIdx.x", 1), T.launch_thread("threadIdx.x", threads) as thread:
                        split(pooled, kv_lengths, tail, base, share, floor, thread, budgets)
            with T.launch_thread("blockIdx.x", G) as head, T.launch_thread("threadIdx.x", threads) as thread:
                budget: T.let = T.if_then_else(is_adaptive != 0, budgets[head], base)
                select(pooled, kv_lengths, tail, budget, head, thread, kept, kept_lengths)

    return kv_select_entries
