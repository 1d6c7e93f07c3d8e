"""Causal attention of the new tokens of a ragged batch over the packed pages of the KV cache."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .attention_block import attention_block
from .attention_shape import AttentionShape
from .isa import VectorISA

QUERY_TILE = 64  # tokens in a query tile, as the cache plans them
_ROW_BLOCK = 4


def attention_prefill(
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    page_size: int,
    dtype: str,
    isa: VectorISA,
    sm_scale: float,
    kv_dtype: str = "model",
) -> PrimFunc:
    """(q, k_pages, v_pages, query_indptr, tiles, page_indptr, page_indices, kv_lengths, out).

    q, out : dtype [n, H, d]
    k_pages, v_pages : of dtype, or 8-bit if kv_dtype is "int8" (tir_kernels/kv_pages.py)
    query_indptr : int32 [B + 1], tiles : int32 [tiles, 2] of (sequence, first row) for tiles of 64 rows
    page_indptr : int32 [G, B + 1] into page_indices int32 [T], kv_lengths : int32 [G, B] with the new tokens

    Row j of the n_b new tokens of sequence b sees the entries [0, kv_lengths[h, b] - n_b + j + 1) of key/value head h.
    A task is a (key/value head, tile); its query heads meet each page together, while it is in the L1 cache.
    head_dim and page_size are multiples of 16, sm_scale is positive.
    """
    shape = AttentionShape(
        num_attention_heads, num_key_value_heads, head_dim, page_size, dtype, isa, _ROW_BLOCK, kv_dtype
    )
    block = attention_block(shape, sm_scale, prefetching_blocks=1)
    H, G, d = num_attention_heads, num_key_value_heads, head_dim
    g, R, pages = shape.group, _ROW_BLOCK, shape.pages
    max_rows = -(-QUERY_TILE * g // R) * R

    @T.prim_func(s_tir=True)
    def attention_prefill(
        q_handle: T.handle,
        k_pages_handle: T.handle,
        v_pages_handle: T.handle,
        query_indptr_handle: T.handle,
        tiles_handle: T.handle,
        page_indptr_handle: T.handle,
        page_indices_handle: T.handle,
        kv_lengths_handle: T.handle,
        out_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int64()
        num_pages = T.int64()
        batch_size = T.int64()
        num_tiles = T.int64()
        num_indices = T.int64()
        q = T.match_buffer(q_handle, (n, H, d), dtype)
        k_pages = T.match_buffer(k_pages_handle, pages.key_shape(num_pages), pages.key_dtype)
        v_pages = T.match_buffer(v_pages_handle, pages.value_shape(num_pages), pages.value_dtype)
        query_indptr = T.match_buffer(query_indptr_handle, (batch_size + 1,), "int32")
        tiles = T.match_buffer(tiles_handle, (num_tiles, 2), "int32")
        page_indptr = T.match_buffer(page_indptr_handle, (G, batch_size + 1), "int32")
        page_indices = T.match_buffer(page_indices_handle, (num_indices,), "int32")
        kv_lengths = T.match_buffer(kv_lengths_handle, (G, batch_size), "int32")
        out = T.match_buffer(out_handle, (n, H, d), dtype)
        with T.sblock("root"):
            T.reads()
            T.writes()
            with isa.helpers():
                for task in T.parallel(G * num_tiles):
                    with T.sblock("task"):
                        T.reads()
                        T.writes()
                        scratch = block.scratch(max_rows)
                        head: T.let = task // num_tiles
                        sequence: T.let = tiles[task % num_tiles, 0]
                        first: T.let = tiles[task % num_tiles, 1]
                        token0: T.let = query_indptr[sequence] + first
                        num_new: T.let = query_indptr[sequence + 1] - query_indptr[sequence]
                        num_tokens: T.let = T.min(QUERY_TILE, num_new - first)
                        num_rows: T.let = num_tokens * g
                        num_blocks: T.let = (num_rows + R - 1) // R
                        visible0: T.let = kv_lengths[head, sequence] - num_new + first + 1
                        block.start(q, token0, head, num_rows, num_blocks * R, scratch)
                        num_head_pages: T.let = (visible0 + num_tokens - 1 + page_size - 1) // page_size
                        indices0: T.let = page_indptr[head, sequence]
                        for p in T.serial(num_head_pages):
                            head_page: T.let = T.cast(page_indices[indices0 + p], "int64")
                            next_pages = block.upcoming(page_indices, indices0, p, num_head_pages)
                            visible: T.let = visible0 - p * page_size
                            block.enter(k_pages, v_pages, head_page, visible + num_tokens - 1, scratch)
                            for r in T.serial(num_blocks):
                                block.update(k_pages, v_pages, head_page, next_pages, r * R, visible, num_rows, scratch)
                        block.finish(out, token0, head, num_rows, scratch)

    return attention_prefill
