"""Prefill attention of which a query tile sees all entries before it, or chosen blocks of them and its own segment."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .attention_block import attention_block
from .attention_prefill import QUERY_TILE
from .attention_shape import AttentionShape
from .chosen_blocks import ChosenList, chosen_blocks
from .isa import VectorISA

_ROW_BLOCK = 4


def attention_gated(
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    page_size: int,
    segment_size: int,
    block_size: int,
    dtype: str,
    isa: VectorISA,
    sm_scale: float,
    kv_dtype: str = "model",
) -> PrimFunc:
    """(q, k_pages, v_pages, query_indptr, gated_tiles, page_indptr, page_indices, kv_lengths, segments, block_counts,
    block_lists, out); those that are not below are as for attention_prefill.

    gated_tiles : int32 [tiles, 4] of (sequence, first row, rows <= 64, segment row or -1)
    segments : int32 [n_seg, 5] of (sequence, first row, segment index, ., .)
    block_counts : int32 [n_seg, G], block_lists : int32 [n_seg, G, max_blocks], ascending; all before the segment

    A tile whose segment row is -1 is dense: its rows see what attention_prefill lets them see. A tile of segment row i
    lies within segment s = segments[i, 2] of a sequence whose entries are its positions. For key/value head h it sees
    the blocks block_lists[i, h, :block_counts[i, h]] of block_size entries each, then its own segment, from entry
    s * segment_size on, causally. With every block chosen the result is that of the dense tile, to the bit.

    A task is a (tile, key/value head). It copies a page's worth of chosen blocks at a time into scratch memory that
    stays in the L1 cache; all rows of the tile meet that page, so the copy costs about a hundredth of the products.
    segment_size is a multiple of page_size, page_size one of block_size, block_size one of 8.
    """
    if segment_size % page_size or page_size % block_size or block_size % 8:
        raise ValueError(f"segments of {segment_size}, pages of {page_size}, blocks of {block_size} do not nest")
    shape = AttentionShape(
        num_attention_heads, num_key_value_heads, head_dim, page_size, dtype, isa, _ROW_BLOCK, kv_dtype
    )
    block = attention_block(shape, sm_scale, prefetching_blocks=1)
    chosen = chosen_blocks(shape, block_size)
    H, G, d = num_attention_heads, num_key_value_heads, head_dim
    g, R, pages = shape.group, _ROW_BLOCK, shape.pages
    max_rows = -(-QUERY_TILE * g // R) * R

    @T.prim_func(s_tir=True)
    def attention_gated(
        q_handle: T.handle,
        k_pages_handle: T.handle,
        v_pages_handle: T.handle,
        query_indptr_handle: T.handle,
        gated_tiles_handle: T.handle,
        page_indptr_handle: T.handle,
        page_indices_handle: T.handle,
        kv_lengths_handle: T.handle,
        segments_handle: T.handle,
        block_counts_handle: T.handle,
        block_lists_handle: T.handle,
        out_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int64()
        num_pages = T.int64()
        batch_size = T.int64()
        num_tiles = T.int64()
        num_indices = T.int64()
        num_segments = T.int64()
        max_blocks = T.int64()
        q = T.match_buffer(q_handle, (n, H, d), dtype)
        k_pages = T.match_buffer(k_pages_handle, pages.key_shape(num_pages), pages.key_dtype)
        v_pages = T.match_buffer(v_pages_handle, pages.value_shape(num_pages), pages.value_dtype)
        query_indptr = T.match_buffer(query_indptr_handle, (batch_size + 1,), "int32")
        tiles = T.match_buffer(gated_tiles_handle, (num_tiles, 4), "int32")
        page_indptr = T.match_buffer(page_indptr_handle, (G, batch_size + 1), "int32")
        page_indices = T.match_buffer(page_indices_handle, (num_indices,), "int32")
        kv_lengths = T.match_buffer(kv_lengths_handle, (G, batch_size), "int32")
        segments = T.match_buffer(segments_handle, (num_segments, 5), "int32")
        block_counts = T.match_buffer(block_counts_handle, (num_segments, G), "int32")
        block_lists = T.match_buffer(block_lists_handle, (num_segments, G, max_blocks), "int32")
        out = T.match_buffer(out_handle, (n, H, d), dtype)
        with T.sblock("root"):
            T.reads()
            T.writes()
            with isa.helpers():
                for task in T.parallel(num_tiles * G):  # the heads of a tile together: they may see unlike numbers
                    with T.sblock("task"):
                        T.reads()
                        T.writes()
                        scratch = block.scratch(max_rows)
                        copied = chosen.scratch()
                        tile: T.let = task // G
                        head: T.let = task % G
                        sequence: T.let = tiles[tile, 0]
                        first: T.let = tiles[tile, 1]
                        num_tokens: T.let = tiles[tile, 2]
                        segment: T.let = tiles[tile, 3]
                        token0: T.let = query_indptr[sequence] + first
                        num_new: T.let = query_indptr[sequence + 1] - query_indptr[sequence]
                        num_rows: T.let = num_tokens * g
                        num_blocks: T.let = (num_rows + R - 1) // R
                        visible0: T.let = kv_lengths[head, sequence] - num_new + first + 1
                        indices0: T.let = page_indptr[head, sequence]
                        count: T.let = T.if_then_else(segment >= 0, block_counts[segment, head], 0)
                        own_page: T.let = T.if_then_else(
                            segment >= 0, segments[segment, 2] * (segment_size // page_size), 0
                        )
                        blocks = T.meta_var(
                            ChosenList(page_indices, indices0, block_lists, segment, head, count, own_page)
                        )
                        block.start(q, token0, head, num_rows, num_blocks * R, scratch)
                        for c in T.serial((count + chosen.per_page - 1) // chosen.per_page):
                            chosen.gather(k_pages, v_pages, c, blocks, copied)
                            entries: T.let = T.min(count - c * chosen.per_page, chosen.per_page) * block_size
                            block.enter(copied.keys, copied.values, 0, entries, scratch)
                            for r in T.serial(num_blocks):
                                chosen.prefetch(k_pages, v_pages, c + 1, r, blocks)
                                block.update(
                                    copied.keys, copied.values, 0, (), r * R, entries, num_rows, scratch, causal=False
                                )
                        num_head_pages: T.let = (visible0 + num_tokens - 1 + page_size - 1) // page_size
                        for p in T.serial(own_page, num_head_pages):
                            head_page: T.let = T.cast(page_indices[indices0 + p], "int64")
                            next_pages = block.upcoming(page_indices, indices0, p, num_head_pages)
                            visible: T.let = visible0 - p * page_size
                            block.enter(k_pages, v_pages, head_page, visible + num_tokens - 1, scratch)
                            for r in T.serial(num_blocks):
                                block.update(k_pages, v_pages, head_page, next_pages, r * R, visible, num_rows, scratch)
                        block.finish(out, token0, head, num_rows, scratch)

    return attention_gated
