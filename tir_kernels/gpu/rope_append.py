"""RoPE on the queries and keys of the new tokens; keys and values go straight into the pages of the KV cache."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .features import GPUFeatures
from .model_pages import model_pages
from .thread_block import address

_THREADS = 128
_TOKENS = 32  # of a block; a run of them is contiguous in a page


def rope_append(
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    rotary_dim: int,
    page_size: int,
    dtype: str,
    gpu: GPUFeatures,
    window: bool = False,
    kv_dtype: str = "model",
) -> PrimFunc:
    """(qkv, cos_sin, append_slots, k_pages, v_pages, q_out); k_pages and v_pages are updated in place.

    With ``window``: (qkv, cos_sin, append_slots, query_slots, k_pages, v_pages, observed, q_out). Tensors and
    arithmetic as in :func:`tir_kernels.cpu.rope_append.rope_append`.

    A block owns a run of tokens of one query head, or of the key and value of one key/value head. Keys are read along
    their dimensions and written along the entries of a page, with shared memory between.
    """
    H, G, d = num_attention_heads, num_key_value_heads, head_dim
    half, rest = rotary_dim // 2, head_dim - rotary_dim
    pages = model_pages(head_dim, page_size, dtype, kv_dtype)
    P = pages.pair
    key_stride = d + P  # elements of a key in shared memory; rows begin in different banks

    def rounds(elements):
        """How often the threads of a block pass over ``elements``."""
        return T.ceildiv(elements, _THREADS)

    @T.inline
    def rotate(qkv, cos_sin, token0, num_tokens, head, thread, store):
        """``store(i, c, value)`` for every dimension c of RoPE of ``head`` of token token0 + i, in float32."""
        for step in T.serial(rounds(num_tokens * half)):
            i: T.let = (step * _THREADS + thread) // half
            j: T.let = (step * _THREADS + thread) % half
            if i < num_tokens:
                x: T.let = T.cast(qkv[token0 + i, head, j], "float32")
                y: T.let = T.cast(qkv[token0 + i, head, half + j], "float32")
                cos: T.let = cos_sin[token0 + i, j]
                sin: T.let = cos_sin[token0 + i, half + j]
                store(i, j, x * cos - y * sin)
                store(i, half + j, y * cos + x * sin)
        if rest > 0:
            for step in T.serial(rounds(num_tokens * rest)):
                i: T.let = (step * _THREADS + thread) // rest
                c: T.let = rotary_dim + (step * _THREADS + thread) % rest
                if i < num_tokens:
                    store(i, c, T.cast(qkv[token0 + i, head, c], "float32"))

    @T.inline
    def rotate_queries(qkv, cos_sin, query_slots, token0, num_tokens, head, thread, observed, q_out):
        @T.inline
        def store(i, c, value):
            q_out[token0 + i, head, c] = T.cast(value, dtype)
            if observed is not None:
                if query_slots[token0 + i] >= 0:
                    observed[query_slots[token0 + i], head, c] = T.cast(value, dtype)

        rotate(qkv, cos_sin, token0, num_tokens, head, thread, store)

    @T.inline
    def append(qkv, cos_sin, append_slots, token0, num_tokens, head, thread, keys, k_pages, v_pages):
        @T.inline
        def store(i, c, value):
            keys[i * key_stride + c] = T.cast(value, dtype)

        rotate(qkv, cos_sin, token0, num_tokens, H + head, thread, store)
        T.tvm_storage_sync("shared")
        for step in T.serial(rounds(_TOKENS * d)):
            e: T.let = step * _THREADS + thread
            i: T.let = e // P % _TOKENS
            c: T.let = e // (P * _TOKENS) * P + e % P
            if i < num_tokens:
                slot: T.let = append_slots[head, token0 + i]
                k_pages[address(gpu, slot // page_size), c // P, slot % page_size, c % P] = keys[i * key_stride + c]
        for step in T.serial(rounds(_TOKENS * d)):
            e: T.let = step * _THREADS + thread
            i: T.let = e // (P * d) * P + e % P
            c: T.let = e // P % d
            if i < num_tokens:
                slot: T.let = append_slots[head, token0 + i]
                offset: T.let = slot % page_size
                v_pages[address(gpu, slot // page_size), offset // P, c, offset % P] = qkv[token0 + i, H + G + head, c]

    @T.inline
    def rotate_all(n, qkv, cos_sin, append_slots, query_slots, k_pages, v_pages, observed, q_out):
        with T.sblock("root"):
            T.reads()
            T.writes()
            for tile in T.thread_binding(T.ceildiv(n, _TOKENS), thread="blockIdx.x"):
                for head in T.thread_binding(H + G, thread="blockIdx.y"):
                    for thread in T.thread_binding(_THREADS, thread="threadIdx.x"):
                        with T.sblock("run"):
                            T.reads()
                            T.writes()
                            keys = T.alloc_buffer((_TOKENS * key_stride,), dtype, scope="shared")
                            token0: T.let = tile * _TOKENS
                            num_tokens: T.let = T.cast(T.min(n - token0, _TOKENS), "int32")
                            if head < H:
                                rotate_queries(
                                    qkv, cos_sin, query_slots, token0, num_tokens, head, thread, observed, q_out
                                )
                            else:
                                append(
                                    qkv,
                                    cos_sin,
                                    append_slots,
                                    token0,
                                    num_tokens,
                                    head - H,
                                    thread,
                                    keys,
                                    k_pages,
                                    v_pages,
                                )

    @T.prim_func(s_tir=True)
    def rope_append(
        qkv_handle: T.handle,
        cos_sin_handle: T.handle,
        append_slots_handle: T.handle,
        k_pages_handle: T.handle,
        v_pages_handle: T.handle,
        q_out_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int64()
        num_pages = T.int64()
        qkv = T.match_buffer(qkv_handle, (n, H + 2 * G, d), dtype)
        cos_sin = T.match_buffer(cos_sin_handle, (n, rotary_dim), "float32")
        append_slots = T.match_buffer(append_slots_handle, (G, n), "int32")
        k_pages = T.match_buffer(k_pages_handle, pages.key_shape(num_pages), dtype)
        v_pages = T.match_buffer(v_pages_handle, pages.value_shape(num_pages), dtype)
        q_out = T.match_buffer(q_out_handle, (n, H, d), dtype)
        rotate_all(n, qkv, cos_sin, append_slots, None, k_pages, v_pages, None, q_out)

    @T.prim_func(s_tir=True)
    def rope_append_window(
        qkv_handle: T.handle,
        cos_sin_handle: T.handle,
        append_slots_handle: T.handle,
        query_slots_handle: T.handle,
        k_pages_handle: T.handle,
        v_pages_handle: T.handle,
        observed_handle: T.handle,
        q_out_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int64()
        num_pages = T.int64()
        num_observed = T.int64()
        qkv = T.match_buffer(qkv_handle, (n, H + 2 * G, d), dtype)
        cos_sin = T.match_buffer(cos_sin_handle, (n, rotary_dim), "float32")
        append_slots = T.match_buffer(append_slots_handle, (G, n), "int32")
        query_slots = T.match_buffer(query_slots_handle, (n,), "int32")
        k_pages = T.match_buffer(k_pages_handle, pages.key_shape(num_pages), dtype)
        v_pages = T.match_buffer(v_pages_handle, pages.value_shape(num_pages), dtype)
        observed = T.match_buffer(observed_handle, (num_observed, H, d), dtype)
        q_out = T.match_buffer(q_out_handle, (n, H, d), dtype)
        rotate_all(n, qkv, cos_sin, append_slots, query_slots, k_pages, v_pages, observed, q_out)

    return rope_append_window if window else rope_append
