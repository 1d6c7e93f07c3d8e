"""RoPE on the queries and keys of the new tokens; keys and values go straight into the pages of the KV cache."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tir_kernels.kv_pages import KVPages, stored_dtype

from .int8_entries import store_int8_key, store_int8_value
from .isa import VectorISA
from .vector_ranges import isa_for_width, vector_starts
from .word_entries import word_entries

_MIN_PARALLEL_ELEMENTS = 16384  # of qkv; a parallel region costs about as long


def rope_append(
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    rotary_dim: int,
    page_size: int,
    dtype: str,
    isa: VectorISA,
    window: bool = False,
    kv_dtype: str = "model",
    centred: bool = False,
) -> PrimFunc:
    """(qkv, cos_sin, append_slots, k_pages, v_pages, q_out); k_pages and v_pages are updated in place.

    With ``window``: (qkv, cos_sin, append_slots, query_slots, k_pages, v_pages, observed, q_out), and the queries of
    the newest tokens are kept for a later compression of the cache: observed is updated in place, too.

    With ``centred``, for 8-bit pages: qkv_bias and mean_cos_sin come before k_pages. What the bias of the keys is on
    average over many positions is subtracted from every key after RoPE. It is the same for all keys of a head, so no
    softmax over keys changes, and codes are not spent on it: biases of Qwen2.5 are up to a hundred times as large as
    what tells its keys apart, in pairs that turn slowly.

    qkv : dtype [n, H + 2 G, d], query heads, key heads, value heads, before RoPE
    cos_sin : float32 [n, rotary_dim] as :func:`rope_table` writes it
    append_slots : int32 [G, n], ``head_page * page_size + offset`` of the new entry of each key/value head
    k_pages, v_pages : of dtype, or 8-bit if kv_dtype is "int8" (tir_kernels/kv_pages.py)
    q_out : dtype [n, H, d]
    query_slots : int32 [n], the row of ``observed`` that gets the token's row of q_out, or -1; no row twice
    observed : dtype [rows, H, d]
    qkv_bias : dtype [1, H + 2 G, d], that of the projection; mean_cos_sin : float32 [1, rotary_dim], like cos_sin

    RoPE is the rotate-half form on the first ``rotary_dim`` dimensions.

    A task owns a run of tokens of one key/value head. Two tasks may own the two bfloat16 of one 32-bit word of v_pages,
    so a word is only stored whole by a task that owns both; else each half is stored alone, which loses no neighbour.
    Bytes of 8-bit values are always stored alone.
    """
    H, G, d = num_attention_heads, num_key_value_heads, head_dim
    g = H // G
    half, rest = rotary_dim // 2, head_dim - rotary_dim
    pages = KVPages(head_dim, page_size, stored_dtype(kv_dtype, dtype))
    P = pages.pair
    isa = isa_for_width(isa, min(width for width in (half, rest, d if pages.is_int8 else d // P) if width))
    L = isa.lanes
    rotary, kept = (vector_starts(isa, width) for width in (half, rest))

    def store(out, value, *indices):
        if out.dtype == "uint16":
            T.buffer_store(out, isa.bf16_bits(value), [*indices[:-1], isa.ramp(indices[-1])])
        else:
            isa.store(out, value, *indices)

    @T.inline
    def rotate(qkv, cos_sin, token, head, out, out_row):
        """out[out_row, :] = RoPE of one head of one token; ``out_row`` is a tuple, a uint16 ``out`` holds bfloat16."""
        for v in T.unroll(rotary.count):
            j: T.let = rotary[v]
            x: T.let = isa.load(qkv, token, head, j)
            y: T.let = isa.load(qkv, token, head, half + j)
            cos: T.let = isa.load(cos_sin, token, j)
            sin: T.let = isa.load(cos_sin, token, half + j)
            store(out, x * cos - y * sin, *out_row, j)
            store(out, y * cos + x * sin, *out_row, half + j)
        for v in T.unroll(kept.count):
            store(out, isa.load(qkv, token, head, rotary_dim + kept[v]), *out_row, rotary_dim + kept[v])

    store_run, store_token = word_entries(isa, pages, H + G)

    @T.inline
    def observe(q_out, token, head, observed, row):
        """Copy the query heads that share ``head``, unless ``row`` is -1."""
        if row >= 0:
            for j in T.serial(g):
                for v in T.serial(d // L):
                    observed[row, head * g + j, isa.ramp(v * L)] = q_out[token, head * g + j, isa.ramp(v * L)]

    @T.inline
    def rotate_queries(qkv, cos_sin, token, head, query_slots, observed, q_out):
        """The query heads that share ``head``."""
        for j in T.serial(g):
            rotate(qkv, cos_sin, token, head * g + j, q_out, (token, head * g + j))
        if observed is not None:
            observe(q_out, token, head, observed, query_slots[token])

    @T.inline
    def append_word_run(
        num_tokens, token0, head, qkv, cos_sin, append_slots, query_slots, _bias, k_pages, v_pages, observed, q_out
    ):
        keys = T.sblock_alloc_buffer((L, d), "uint16" if P == 2 else dtype)
        broken = T.sblock_alloc_buffer((1,), "int32")
        first: T.let = append_slots[head, token0]
        broken[0] = T.Select(num_tokens < L or first % page_size + L > page_size or first % P > 0, 1, 0)
        for i in T.serial(num_tokens):
            rotate_queries(qkv, cos_sin, token0 + i, head, query_slots, observed, q_out)
            rotate(qkv, cos_sin, token0 + i, H + head, keys, (i,))
            broken[0] = broken[0] | (append_slots[head, token0 + i] - T.cast(i, "int32") - first)
        if broken[0] == 0:
            page: T.let = T.cast(first // page_size, "int64")
            store_run(qkv, keys, token0, head, k_pages, v_pages, page, first % page_size)
        else:
            for i in T.serial(num_tokens):
                slot: T.let = append_slots[head, token0 + i]
                target: T.let = T.cast(slot // page_size, "int64")
                store_token(qkv, keys, i, token0 + i, head, k_pages, v_pages, target, slot % page_size)

    @T.inline
    def append_int8_run(
        num_tokens, token0, head, qkv, cos_sin, append_slots, query_slots, bias, k_pages, v_pages, observed, q_out
    ):
        key = T.sblock_alloc_buffer((1, d), "float32")
        centre = T.sblock_alloc_buffer((1, d), "float32")
        if centred:
            rotate(*bias, 0, H + head, centre, (0,))
        for i in T.serial(num_tokens):
            rotate_queries(qkv, cos_sin, token0 + i, head, query_slots, observed, q_out)
            rotate(qkv, cos_sin, token0 + i, H + head, key, (0,))
            slot: T.let = append_slots[head, token0 + i]
            page: T.let = T.cast(slot // page_size, "int64")
            store_int8_key(isa, pages, key, centre if centred else None, k_pages, page, slot % page_size)
            store_int8_value(isa, pages, qkv, token0 + i, H + G + head, v_pages, page, slot % page_size)

    append_tokens = append_int8_run if pages.is_int8 else append_word_run

    @T.inline
    def append(n, qkv, cos_sin, append_slots, query_slots, bias, k_pages, v_pages, observed, q_out):
        @T.inline
        def append_run(task):
            with T.sblock("run"):
                T.reads()
                T.writes()
                head: T.let = task % G
                token0: T.let = task // G * L
                num_tokens: T.let = T.min(T.int64(L), n - token0)
                append_tokens(
                    num_tokens,
                    token0,
                    head,
                    qkv,
                    cos_sin,
                    append_slots,
                    query_slots,
                    bias,
                    k_pages,
                    v_pages,
                    observed,
                    q_out,
                )

        with T.sblock("root"):
            T.reads()
            T.writes()
            with isa.helpers():
                if n * ((H + 2 * G) * d) < _MIN_PARALLEL_ELEMENTS:
                    for task in T.serial((n + L - 1) // L * G):
                        append_run(task)
                else:
                    for task in T.parallel((n + L - 1) // L * G):
                        append_run(task)

    @T.prim_func(s_tir=True)
    def rope_append(
        qkv_handle: T.handle,
        cos_sin_handle: T.handle,
        append_slots_handle: T.handle,
        query_slots_handle: T.handle,
        qkv_bias_handle: T.handle,
        mean_cos_sin_handle: T.handle,
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
        qkv_bias = T.match_buffer(qkv_bias_handle, (1, H + 2 * G, d), dtype)
        mean_cos_sin = T.match_buffer(mean_cos_sin_handle, (1, rotary_dim), "float32")
        k_pages = T.match_buffer(k_pages_handle, pages.key_shape(num_pages), pages.key_dtype)
        v_pages = T.match_buffer(v_pages_handle, pages.value_shape(num_pages), pages.value_dtype)
        observed = T.match_buffer(observed_handle, (num_observed, H, d), dtype)
        q_out = T.match_buffer(q_out_handle, (n, H, d), dtype)
        bias = T.meta_var((qkv_bias, mean_cos_sin))
        kept_queries = T.meta_var(observed if window else None)
        append(n, qkv, cos_sin, append_slots, query_slots, bias, k_pages, v_pages, kept_queries, q_out)

    absent = [] if window else ["query_slots", "observed"]
    absent += [] if centred else ["qkv_bias", "mean_cos_sin"]
    return _without(rope_append, set(absent))


def _without(func: PrimFunc, names: set[str]) -> PrimFunc:
    """``func`` less the parameters of these names, which its body does not read."""
    return PrimFunc([param for param in func.params if param.name not in names], func.body, func.ret_type, func.attrs)
