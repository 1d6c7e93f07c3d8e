"""Products of a tile of queries with the keys of a page, in float32: the inner loop of window_scores."""

from types import SimpleNamespace

from tvm.script import tirx as T

from .features import GPUFeatures
from .thread_block import address

ROW_LANES, COLUMN_LANES = 16, 16  # threads along the rows and along the keys of a tile
THREADS = ROW_LANES * COLUMN_LANES
_ROWS = 4  # of a thread
_DEPTH = 16  # dimensions in shared memory at a time; a divisor of every head_dim
_PADDING = 4  # floats: dimensions begin in different banks, and four floats are one read


def score_tile(
    head_dim: int, page_size: int, num_rows: int, group: int, window: int, scale: float, pair: int, gpu: GPUFeatures
) -> SimpleNamespace:
    """TVMScript statements for all :data:`THREADS` threads of a block; ``rows`` and ``keys`` are those of a thread.

    ``scratch()``
        shared memory of a block.
    ``scores(scratch, observed, ring, oldest, head, row0, k_pages, page, thread, s)``
        s[r * keys + k] (local) = scale * q.k of row row0 + thread // 16 * rows + r and key k * 16 + thread % 16 of a
        page. Row = age * group + query head within the group; the query of an age is row
        ring + (oldest + age) % window of ``observed``. Rows from num_rows on are zero.
    """
    keys = page_size // COLUMN_LANES
    tile_rows = ROW_LANES * _ROWS
    query_stride, key_stride = tile_rows + _PADDING, page_size + _PADDING  # of a dimension, in shared memory
    if page_size % COLUMN_LANES or head_dim % _DEPTH:
        raise ValueError(f"page_size {page_size} and head_dim {head_dim} must be multiples of {_DEPTH}")

    def scratch() -> SimpleNamespace:
        queries = T.alloc_buffer((_DEPTH * query_stride,), "float32", scope="shared")
        keys_of_page = T.alloc_buffer((_DEPTH * key_stride,), "float32", scope="shared")
        return SimpleNamespace(queries=queries, keys=keys_of_page)

    @T.inline
    def load_queries(shared, observed, ring, oldest, head, row0, c0, thread):
        for i in T.serial(tile_rows * _DEPTH // THREADS):
            at: T.let = i * THREADS + thread
            row: T.let = row0 + at // _DEPTH
            source: T.let = ring + (oldest + row // group) % window
            shared.queries[at % _DEPTH * query_stride + at // _DEPTH] = T.if_then_else(
                row < num_rows, T.cast(observed[source, head * group + row % group, c0 + at % _DEPTH], "float32"), 0.0
            )

    @T.inline
    def load_keys(shared, k_pages, page, c0, thread):
        for i in T.serial(page_size * _DEPTH // THREADS):
            at: T.let = i * THREADS + thread
            c: T.let = at // (page_size * pair) * pair + at % pair
            key: T.let = at // pair % page_size
            shared.keys[c * key_stride + key] = T.cast(
                k_pages[address(gpu, page), (c0 + c) // pair, key, at % pair], "float32"
            )

    @T.inline
    def scores(shared, observed, ring, oldest, head, row0, k_pages, page, thread, s):
        query = T.alloc_buffer((_ROWS,), "float32", scope="local")
        for j in T.unroll(_ROWS * keys):
            s[j] = T.float32(0)
        for slice in T.serial(head_dim // _DEPTH):
            T.tvm_storage_sync("shared")
            load_queries(shared, observed, ring, oldest, head, row0, slice * _DEPTH, thread)
            load_keys(shared, k_pages, page, slice * _DEPTH, thread)
            T.tvm_storage_sync("shared")
            for c in T.serial(_DEPTH):
                for r in T.unroll(_ROWS):
                    query[r] = shared.queries[c * query_stride + thread // COLUMN_LANES * _ROWS + r]
                for k in T.unroll(keys):
                    key: T.let = shared.keys[c * key_stride + k * COLUMN_LANES + thread % COLUMN_LANES]
                    for r in T.unroll(_ROWS):
                        s[r * keys + k] = s[r * keys + k] + query[r] * key
        for j in T.unroll(_ROWS * keys):
            s[j] = s[j] * T.float32(scale)

    return SimpleNamespace(scratch=scratch, scores=scores, rows=_ROWS, keys=keys)
