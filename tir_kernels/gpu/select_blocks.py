"""The blocks that each key/value head attends to in a gated query segment."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tir_kernels.gate_tables import GATED, KEEP, KEEP_FIRST, KEEP_RECENT, SEGMENT

from .features import GPUFeatures
from .thread_block import num_threads
from .top_k import top_k


def select_blocks(num_key_value_heads: int, segment_size: int, block_size: int, gpu: GPUFeatures) -> PrimFunc:
    """(scores, gates, segments, parameters, block_counts, block_lists); the last two are updated in place.

    The tensors and what is chosen are those of :func:`tir_kernels.cpu.select_blocks.select_blocks`. A block of threads
    serves a segment and key/value head.
    """
    G, blocks_per_segment = num_key_value_heads, segment_size // block_size
    threads = num_threads(gpu, 256)
    best = top_k(threads)

    @T.inline
    def write_range(first, end, thread, lists, row, start):
        for i in T.serial(T.ceildiv(T.max(end - first - thread, 0), threads)):
            lists[(*row, start + thread + i * threads)] = first + thread + i * threads

    @T.prim_func(s_tir=True)
    def select_blocks(
        scores_handle: T.handle,
        gates_handle: T.handle,
        segments_handle: T.handle,
        parameters_handle: T.handle,
        block_counts_handle: T.handle,
        block_lists_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        num_segments = T.int32()
        num_rows = T.int32()
        max_blocks = T.int32()
        scores = T.match_buffer(scores_handle, (num_segments, G, max_blocks), "float32")
        gates = T.match_buffer(gates_handle, (num_rows, G, 4), "float32")
        segments = T.match_buffer(segments_handle, (num_segments, 5), "int32")
        parameters = T.match_buffer(parameters_handle, (8,), "float32")
        block_counts = T.match_buffer(block_counts_handle, (num_segments, G), "int32")
        block_lists = T.match_buffer(block_lists_handle, (num_segments, G, max_blocks), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            if num_segments > 0:
                with (
                    T.launch_thread("blockIdx.x", num_segments * G) as block,
                    T.launch_thread("threadIdx.x", threads) as thread,
                ):
                    shared = T.meta_var(best.scratch())
                    i: T.let = block // G
                    head: T.let = block % G
                    num_blocks: T.let = segments[i, SEGMENT] * blocks_per_segment
                    gated: T.let = T.Select(segments[i, GATED] != 0, num_blocks, 0)
                    keep: T.let = T.min(T.Cast("int32", gates[num_rows - num_segments + i, head, KEEP]), gated)
                    first: T.let = T.min(T.Cast("int32", parameters[KEEP_FIRST]), keep)
                    recent: T.let = T.min(T.Cast("int32", parameters[KEEP_RECENT]), num_blocks - first)
                    ranked: T.let = T.max(T.min(keep - first - recent, num_blocks - first - recent), 0)
                    row = T.meta_var((i, head))
                    write_range(0, first, thread, block_lists, row, 0)
                    best.append_top_k(
                        shared, scores, row, first, num_blocks - recent, thread, ranked, block_lists, row, first
                    )
                    write_range(
                        num_blocks - recent,
                        num_blocks - recent + T.min(recent, keep - first),
                        thread,
                        block_lists,
                        row,
                        first + ranked,
                    )
                    if thread == 0:
                        block_counts[i, head] = keep

    return select_blocks
