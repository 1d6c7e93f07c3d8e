"""Query tiles of single rows: for a layer whose attention is wanted at a few rows only."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tir_kernels.gate_tables import FIRST_ROW, GATED, SEQUENCE

_THREADS = 64


def row_tiles(segment_size: int | None) -> PrimFunc:
    """(rows, query_indptr, tiles), or with a ``segment_size`` (rows, query_indptr, segments, tiles).

    As :func:`tir_kernels.cpu.row_tiles.row_tiles`; a thread makes one tile.
    """

    @T.inline
    def place(rows, query_indptr, last_sequence, i, tiles):
        sequence = T.alloc_buffer((1,), "int32", scope="local")
        row: T.let = T.max(T.min(rows[i], query_indptr[last_sequence + 1] - 1), 0)
        sequence[0] = 0
        for s in T.serial(last_sequence):
            if query_indptr[s + 1] <= row:
                sequence[0] = T.cast(s + 1, "int32")
        tiles[i, 0] = sequence[0]
        tiles[i, 1] = row - query_indptr[sequence[0]]

    @T.inline
    def find_segment(segments, num_segments, i, tiles):
        found = T.alloc_buffer((1,), "int32", scope="local")
        found[0] = -1
        for s in T.serial(num_segments):
            if segments[s, SEQUENCE] == tiles[i, 0] and segments[s, GATED] != 0:
                distance: T.let = tiles[i, 1] - segments[s, FIRST_ROW]
                if distance // (segment_size or 1) == 0:
                    found[0] = T.cast(s, "int32")
        tiles[i, 2] = 1
        tiles[i, 3] = found[0]

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
            for block in T.thread_binding(T.ceildiv(num_rows, _THREADS), thread="blockIdx.x"):
                for thread in T.thread_binding(_THREADS, thread="threadIdx.x"):
                    with T.sblock("row"):
                        T.reads()
                        T.writes()
                        if block * _THREADS + thread < num_rows:
                            place(rows, query_indptr, num_bounds - 2, block * _THREADS + thread, tiles)

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
            for block in T.thread_binding(T.ceildiv(num_rows, _THREADS), thread="blockIdx.x"):
                for thread in T.thread_binding(_THREADS, thread="threadIdx.x"):
                    with T.sblock("row"):
                        T.reads()
                        T.writes()
                        if block * _THREADS + thread < num_rows:
                            place(rows, query_indptr, num_bounds - 2, block * _THREADS + thread, tiles)
                            find_segment(segments, num_segments, block * _THREADS + thread, tiles)

    return dense if segment_size is None else gated
