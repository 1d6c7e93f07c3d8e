"""Query tiles of single rows: for a layer whose attention is wanted at a few rows only."""

from tvm import tirx
from tvm.script import tirx as T

from tir_kernels.gate_tables import FIRST_ROW, GATED, SEQUENCE

from .scratch import stack_buffer


def row_tiles(segment_size: int | None) -> tirx.PrimFunc:
    """(rows, query_indptr, tiles): a tile a row, as attention_prefill takes them.

    With a ``segment_size``: (rows, query_indptr, segments, tiles), the tiles as attention_gated takes them.

    rows : int32 [b] of the new tokens of the step, all sequences one after the other; outside of them the nearest one
    query_indptr : int32 [B + 1], segments : int32 [n_seg, 5] of (sequence, first row, segment index, ., gated)
    tiles : int32 [b, 2] of (sequence, row), or [b, 4] of (sequence, row, 1, row of the gated segment or -1)
    """

    @T.inline
    def place(rows, query_indptr, last_sequence, i, tiles):
        sequence = stack_buffer(1, "int32")
        row: T.let = T.max(T.min(rows[i], query_indptr[last_sequence + 1] - 1), 0)
        sequence[0] = 0
        for s in T.serial(last_sequence):
            if query_indptr[s + 1] <= row:
                sequence[0] = T.cast(s + 1, "int32")
        tiles[i, 0] = sequence[0]
        tiles[i, 1] = row - query_indptr[sequence[0]]

    @T.prim_func(s_tir=True)
    def dense(rows_handle: T.handle, query_indptr_handle: T.handle, tiles_handle: T.handle):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        num_rows = T.int64()
        num_bounds = T.int64()
        rows = T.match_buffer(rows_handle, (num_rows,), "int32")
        query_indptr = T.match_buffer(query_indptr_handle, (num_bounds,), "int32")
        tiles = T.match_buffer(tiles_handle, (num_rows, 2), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for i in T.serial(num_rows):
                with T.sblock("row"):
                    T.reads()
                    T.writes()
                    place(rows, query_indptr, num_bounds - 2, i, tiles)

    @T.prim_func(s_tir=True)
    def gated(rows_handle: T.handle, query_indptr_handle: T.handle, segments_handle: T.handle, tiles_handle: T.handle):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        num_rows = T.int64()
        num_bounds = T.int64()
        num_segments = T.int64()
        rows = T.match_buffer(rows_handle, (num_rows,), "int32")
        query_indptr = T.match_buffer(query_indptr_handle, (num_bounds,), "int32")
        segments = T.match_buffer(segments_handle, (num_segments, 5), "int32")
        tiles = T.match_buffer(tiles_handle, (num_rows, 4), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for i in T.serial(num_rows):
                with T.sblock("row"):
                    T.reads()
                    T.writes()
                    place(rows, query_indptr, num_bounds - 2, i, tiles)
                    tiles[i, 2] = 1
                    tiles[i, 3] = -1
                    for s in T.serial(num_segments):
                        if segments[s, SEQUENCE] == tiles[i, 0] and segments[s, GATED] != 0:
                            distance: T.let = tiles[i, 1] - segments[s, FIRST_ROW]
                            if distance // (segment_size or 1) == 0:
                                tiles[i, 3] = T.cast(s, "int32")

    return dense if segment_size is None else gated
