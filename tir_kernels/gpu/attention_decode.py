"""Attention of one new token a sequence over the packed pages of the KV cache, the context split over blocks."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .attention_task import AttentionShape
from .decode_mma import MMADecode
from .decode_split import decode_split
from .features import GPUFeatures
from .register import all_registers

_MERGE_THREADS = 64


def attention_decode(
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    page_size: int,
    dtype: str,
    gpu: GPUFeatures,
    sm_scale: float,
    num_splits: int,
    kv_dtype: str = "model",
) -> PrimFunc:
    """(q, k_pages, v_pages, query_indptr, tiles, page_indptr, page_indices, kv_lengths, out), as for attention_prefill.

    q, out : dtype [B, H, d]; every sequence has one new token, so query_indptr and tiles are not read.

    A block of threads is a (sequence, key/value head, split): its query heads share every load of K and V, and it
    leaves the unnormalised output, the maximum and the sum of its entries in a temporary buffer; a second launch merges
    the ``num_splits`` parts.
    """
    shape = AttentionShape(
        num_attention_heads, num_key_value_heads, head_dim, page_size, dtype, gpu, sm_scale, kv_dtype
    )
    H, G, d, S, pages = num_attention_heads, num_key_value_heads, head_dim, num_splits, shape.pages
    on_tensor_cores = gpu.tensor_cores and pages.pair == 2 and head_dim <= MMADecode.most_dims
    split_of = MMADecode(shape, num_splits) if on_tensor_cores else decode_split(shape, num_splits)

    @T.inline
    def merge(row, head, thread, parts, out):
        maximum = T.alloc_buffer((1,), "float32", scope="local")
        total = T.alloc_buffer((2,), "float32", scope="local")
        maximum[0] = parts[row, head, 0, d]
        for s in T.serial(S - 1):
            maximum[0] = T.max(maximum[0], parts[row, head, s + 1, d])
        for i in T.serial(T.ceildiv(d - thread, _MERGE_THREADS)):
            total[0] = T.float32(0)
            total[1] = T.float32(0)
            for s in T.serial(S):
                factor: T.let = T.exp2(parts[row, head, s, d] - maximum[0])
                total[0] = total[0] + parts[row, head, s, d + 1] * factor
                total[1] = total[1] + parts[row, head, s, i * _MERGE_THREADS + thread] * factor
            out[row, head, i * _MERGE_THREADS + thread] = T.cast(total[1] / total[0], dtype)

    @T.prim_func(s_tir=True)
    def attention_decode(
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
        batch_size = T.int64()
        num_pages = T.int64()
        num_tiles = T.int64()
        num_indices = T.int64()
        q = T.match_buffer(q_handle, (batch_size, H, d), dtype)
        k_pages = T.match_buffer(k_pages_handle, pages.key_shape(num_pages), dtype)
        v_pages = T.match_buffer(v_pages_handle, pages.value_shape(num_pages), dtype)
        T.match_buffer(query_indptr_handle, (batch_size + 1,), "int32")
        T.match_buffer(tiles_handle, (num_tiles, 2), "int32")
        page_indptr = T.match_buffer(page_indptr_handle, (G, batch_size + 1), "int32")
        page_indices = T.match_buffer(page_indices_handle, (num_indices,), "int32")
        kv_lengths = T.match_buffer(kv_lengths_handle, (G, batch_size), "int32")
        out = T.match_buffer(out_handle, (batch_size, H, d), dtype)
        with T.sblock("root"):
            T.reads()
            T.writes()
            parts = T.sblock_alloc_buffer((batch_size, H, S, d + 2), "float32")  # output, maximum, sum
            for task in T.thread_binding(batch_size * S, thread="blockIdx.x"):
                for heads in T.thread_binding(G * split_of.chunks, thread="blockIdx.y"):
                    for thread in T.thread_binding(split_of.threads, thread="threadIdx.x"):
                        with T.sblock("part"):
                            T.reads()
                            T.writes()
                            row: T.let = task // S
                            with all_registers():
                                split_of.attend(
                                    q,
                                    k_pages,
                                    v_pages,
                                    page_indices,
                                    page_indptr[heads // split_of.chunks, row],
                                    kv_lengths[heads // split_of.chunks, row],
                                    row,
                                    heads,
                                    T.cast(task % S, "int32"),
                                    thread,
                                    parts,
                                )
            for head in T.thread_binding(H, thread="blockIdx.x"):
                for row in T.thread_binding(batch_size, thread="blockIdx.y"):
                    for thread in T.thread_binding(_MERGE_THREADS, thread="threadIdx.x"):
                        with T.sblock("merge"):
                            T.reads()
                            T.writes()
                            merge(row, head, thread, parts, out)

    return attention_decode
