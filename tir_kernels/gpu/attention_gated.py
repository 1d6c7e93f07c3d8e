"""Prefill attention of which a query tile sees all entries before it, or chosen blocks of them and its own segment."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .attention_task import AttentionShape
from .attention_tiles import Gate, Tables, attend_tiles, row_blocks
from .features import GPUFeatures


def attention_gated(
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    page_size: int,
    segment_size: int,
    block_size: int,
    dtype: str,
    gpu: GPUFeatures,
    sm_scale: float,
    kv_dtype: str = "model",
) -> PrimFunc:
    """(q, k_pages, v_pages, query_indptr, gated_tiles, page_indptr, page_indices, kv_lengths, segments, block_counts,
    block_lists, out).

    Tensors, and what a row sees, as in :func:`tir_kernels.cpu.attention_gated.attention_gated`. A block of threads
    takes some rows of a (tile, key/value head); chosen blocks lie side by side in its shared memory.
    """
    if segment_size % page_size or page_size % block_size or block_size % 8:
        raise ValueError(f"segments of {segment_size}, pages of {page_size}, blocks of {block_size} do not nest")
    shape = AttentionShape(
        num_attention_heads, num_key_value_heads, head_dim, page_size, dtype, gpu, sm_scale, kv_dtype
    )
    blocks = row_blocks(shape)
    H, G, d, pages = num_attention_heads, num_key_value_heads, head_dim, shape.pages

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
        k_pages = T.match_buffer(k_pages_handle, pages.key_shape(num_pages), dtype)
        v_pages = T.match_buffer(v_pages_handle, pages.value_shape(num_pages), dtype)
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
            attend_tiles(
                blocks,
                Tables(q, k_pages, v_pages, query_indptr, tiles, page_indptr, page_indices, kv_lengths, out),
                Gate(segments, block_counts, block_lists, segment_size, block_size),
            )

    return attention_gated
