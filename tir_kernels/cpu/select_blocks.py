"""The blocks that each key/value head attends to in a gated query segment."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tir_kernels.gate_tables import GATED, KEEP, KEEP_FIRST, KEEP_RECENT, SEGMENT

from .isa import VectorISA
from .scratch import stack_buffer
from .top_k import top_k


def select_blocks(num_key_value_heads: int, segment_size: int, block_size: int, isa: VectorISA) -> PrimFunc:
    """(scores, gates, segments, parameters, block_counts, block_lists); the last two are updated in place.

    scores : float32 [n_seg, G, max_blocks], of which segment s has s * segment_size / block_size blocks; no NaN
    gates : float32 [B + n_seg, G, 4]; [B + i, h, 2] is the number of blocks that segment i keeps in head h
    segments : int32 [n_seg, 5] of (sequence, first row, segment index s, previous gate row, gated)
    parameters : float32 [8]; [5] the first and [6] the most recent blocks that are chosen before all others
    block_counts : int32 [n_seg, G]; 0 for a segment that is not gated
    block_lists : int32 [n_seg, G, max_blocks]; the first block_counts entries are block numbers in ascending order

    The best by score are chosen, ties go to the lower number. The blocks that are chosen first count against the
    budget; if they exceed it, the lower numbers are kept.
    """
    G, blocks_per_segment = num_key_value_heads, segment_size // block_size
    best = top_k(isa)

    @T.inline
    def append_range(first, end, lists, row, written):
        for i in T.serial(T.max(end - first, 0)):
            lists[(*row, written[0])] = first + i
            written[0] = written[0] + 1

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
        num_segments = T.int64()
        num_rows = T.int64()
        max_blocks = T.int64()
        scores = T.match_buffer(scores_handle, (num_segments, G, max_blocks), "float32")
        gates = T.match_buffer(gates_handle, (num_rows, G, 4), "float32")
        segments = T.match_buffer(segments_handle, (num_segments, 5), "int32")
        parameters = T.match_buffer(parameters_handle, (8,), "float32")
        block_counts = T.match_buffer(block_counts_handle, (num_segments, G), "int32")
        block_lists = T.match_buffer(block_lists_handle, (num_segments, G, max_blocks), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            with isa.helpers():
                for task in T.parallel(num_segments * G):
                    with T.sblock("task"):
                        T.reads()
                        T.writes()
                        written = stack_buffer(1, "int32")
                        i: T.let = task // G
                        head: T.let = task % G
                        written[0] = 0
                        if segments[i, GATED] != 0:
                            num_blocks: T.let = segments[i, SEGMENT] * blocks_per_segment
                            keep: T.let = T.min(
                                T.Cast("int32", gates[num_rows - num_segments + i, head, KEEP]), num_blocks
                            )
                            first: T.let = T.min(T.Cast("int32", parameters[KEEP_FIRST]), keep)
                            recent: T.let = T.min(T.Cast("int32", parameters[KEEP_RECENT]), num_blocks - first)
                            append_range(0, first, block_lists, (i, head), written)
                            best.append_top_k(
                                scores,
                                (i, head),
                                first,
                                num_blocks - recent,
                                keep - first - recent,
                                block_lists,
                                (i, head),
                                written,
                            )
                            append_range(
                                num_blocks - recent,
                                num_blocks - recent + T.min(recent, keep - first),
                                block_lists,
                                (i, head),
                                written,
                            )
                        block_counts[i, head] = written[0]

    return select_blocks
