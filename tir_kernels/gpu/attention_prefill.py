"""Causal attention of the new tokens of a ragged batch over the packed pages of the KV cache."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .attention_task import AttentionShape
from .attention_tiles import Tables, attend_tiles, row_blocks
from .features import GPUFeatures


def attention_prefill(
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    page_size: int,
    dtype: str,
    gpu: GPUFeatures,
    sm_scale: float,
    kv_dtype: str = "model",
) -> PrimFunc:
    """(q, k_pages, v_pages, query_indptr, tiles, page_indptr, page_indices, kv_lengths, out).

    Tensors, and what a row sees, as in :func:`tir_kernels.cpu.attention_prefill.attention_prefill`; a block of threads
    takes some rows of a (key/value head, tile).
    """
    shape = AttentionShape(
        num_attention_heads, num_key_value_heads, head_dim, page_size, dtype, gpu, sm_scale, kv_dtype
    )
    blocks = row_blocks(shape)
    H, G, d, pages = num_attention_heads, num_key_value_heads, head_dim, shape.pages

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
        k_pages = T.match_buffer(k_pages_handle, pages.key_shape(num_pages), dtype)
        v_pages = T.match_buffer(v_pages_handle, pages.value_shape(num_pages), dtype)
        query_indptr = T.match_buffer(query_indptr_handle, (batch_size + 1,), "int32")
        tiles = T.match_buffer(tiles_handle, (num_tiles, 2), "int32")
        page_indptr = T.match_buffer(page_indptr_handle, (G, batch_size + 1), "int32")
        page_indices = T.match_buffer(page_indices_handle, (num_indices,), "int32")
        kv_lengths = T.match_buffer(kv_lengths_handle, (G, batch_size), "int32")
        out = T.match_buffer(out_handle, (n, H, d), dtype)
        with T.sblock("root"):
            T.reads()
            T.writes()
            attend_tiles(
                blocks, Tables(q, k_pages, v_pages, query_indptr, tiles, page_indptr, page_indices, kv_lengths, out)
            )

    return attention_prefill
