"""How much the newest queries of a sequence attend to each entry of the KV cache: what decode compression ranks by.

The observation of SnapKV (Li et al., arXiv:2404.14469) and of EntropyInfer's latent compression: the softmax of the
last queries over all keys, averaged over the queries and over the query heads that share a key/value head.

The pages are read twice: first for the maximum and the sum of each softmax row, then for the probabilities.
"""

import math

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .attention_block import NEVER
from .attention_shape import AttentionShape
from .isa import VectorISA
from .scratch import stack_buffer
from .unpacked_pages import rotate_query, unpack_keys
from .vector_ranges import vector_starts
from .window_softmax import window_softmax

_PARTS = 32  # of the pages of a head, shared by the threads; a multiple of every tier's lanes


def window_scores(
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    page_size: int,
    window: int,
    dtype: str,
    isa: VectorISA,
    sm_scale: float,
    kv_dtype: str = "model",
) -> PrimFunc:
    """(observed, first_row, newest, k_pages, page_indices, kv_lengths, scores) of one sequence and layer.

    observed : dtype [rows, H, d], of which the rows first_row .. first_row + window - 1 are a ring of queries (after
        RoPE); first_row + newest holds the newest token's. first_row, newest : int64
    k_pages : of dtype, or 8-bit if kv_dtype is "int8" (tir_kernels/kv_pages.py), then unpacked to float32
    page_indices : int32 [G, pages], of which a head reads as many as it needs; kv_lengths : int32 [G]
    scores : float32 [G, max_len], written whole; max_len is at least every length

    The i-th oldest query sees the entries below kv_lengths[h] - window + 1 + i. scores[h, j] is the mean over the
    window and the group of softmax(sm_scale q.k)[j], a softmax in float32; what a query does not see counts as 0, and
    entries that none sees, be they NaN, have the score 0.
    """
    H, G, d, W, L = num_attention_heads, num_key_value_heads, head_dim, window, isa.lanes
    g = H // G
    rows = W * g  # of a key/value head; row = age * group + query head within the group
    max_row_block = 8 if isa.num_vector_registers >= 32 else 4
    R = max(x for x in range(1, max_row_block + 1) if rows % x == 0)
    stored = AttentionShape(H, G, d, page_size, dtype, isa, R, kv_dtype)
    pages = stored.pages
    shape = stored.unpacked if pages.is_int8 else stored
    P, ramp, key_block = shape.pair, isa.ramp, shape.key_block
    vectors = page_size // L
    scale = sm_scale * math.log2(math.e)
    query_starts = vector_starts(isa, shape.query_width)

    @T.inline
    def copy_queries(observed, first_row, newest, age, queries):
        source: T.let = first_row + (newest + 1 + age) % W
        for j in T.serial(H):
            row: T.let = j // g * rows + age * g + j % g
            for v in T.serial(query_starts.count):
                if shape.dot:
                    queries[row, ramp(query_starts[v])] = T.reinterpret(
                        f"int32x{L}", observed[source, j, T.ramp(2 * query_starts[v], 1, 2 * L)]
                    )
                else:
                    queries[row, ramp(query_starts[v])] = isa.load(observed, source, j, query_starts[v])
            if pages.is_int8:
                rotate_query(stored, queries, row)

    def page_scratch() -> T.Buffer | None:
        return T.meta_var(T.sblock_alloc_buffer((1, d, page_size), "float32") if pages.is_int8 else None)

    def read_page(k_pages, head_page, unpacked) -> tuple:
        """(buffer, page) where the keys of a page can be multiplied."""
        if not pages.is_int8:
            return T.meta_var((k_pages, head_page))
        unpack_keys(stored, k_pages, head_page, unpacked)
        return T.meta_var((unpacked, 0))

    @T.inline
    def compute_scores(queries, row0, keys, s):
        """s[i, t] = q.k in base 2 units, of row ``row0 + i`` of ``queries`` and entry t of a page (``read_page``)."""
        for kb in T.serial(page_size // key_block):
            with T.sblock("scores"):
                T.reads()
                T.writes()
                acc = stack_buffer(R * key_block)
                for v in T.unroll(R * key_block // L):
                    acc[ramp(v * L)] = isa.zero()
                for c in T.serial(d // P):
                    for v in T.unroll(key_block // L):
                        for i in T.unroll(R):
                            acc[ramp(i * key_block + v * L)] = shape.add_scores(
                                acc[ramp(i * key_block + v * L)],
                                queries,
                                row0 + i,
                                c,
                                shape.page_words(*keys, c, kb * key_block + v * L),
                            )
                for i in T.unroll(R):
                    for v in T.unroll(key_block // L):
                        s[i, ramp(kb * key_block + v * L)] = acc[ramp(i * key_block + v * L)] * isa.splat(
                            T.float32(scale)
                        )

    def first_page(kv_lengths, head, task):
        """Where the pages of ``task`` begin; task = part * G + head."""
        return T.ceildiv(kv_lengths[head], page_size) * (task // G) // _PARTS

    add_to_sums, merge_parts, add_to_means = window_softmax(isa, g, W, R, vectors, _PARTS)

    @T.inline
    def store_scores(scores, max_len, head, base, value):
        if base + L <= max_len:
            isa.store(scores, value, head, base)
        elif base < max_len:
            isa.store(scores, value, head, base, mask=isa.tail_mask(base, max_len))

    @T.prim_func(s_tir=True)
    def kv_window_scores(
        observed_handle: T.handle,
        first_row: T.int64,
        newest: T.int64,
        k_pages_handle: T.handle,
        page_indices_handle: T.handle,
        kv_lengths_handle: T.handle,
        scores_handle: T.handle,
    ):
        T.func_attr({"global_symbol": "kv_window_scores", "tirx.noalias": True, "tirx.is_scheduled": True})
        num_rows = T.int64()
        num_pages = T.int64()
        num_indices = T.int64()
        max_len = T.int64()
        observed = T.match_buffer(observed_handle, (num_rows, H, d), dtype)
        k_pages = T.match_buffer(k_pages_handle, pages.key_shape(num_pages), pages.key_dtype)
        page_indices = T.match_buffer(page_indices_handle, (G, num_indices), "int32")
        kv_lengths = T.match_buffer(kv_lengths_handle, (G,), "int32")
        scores = T.match_buffer(scores_handle, (G, max_len), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            queries = T.sblock_alloc_buffer((G * rows, shape.query_width), shape.operand_dtype)
            part_maxima = T.sblock_alloc_buffer((G * rows, _PARTS), "float32")
            part_sums = T.sblock_alloc_buffer((G * rows, _PARTS), "float32")
            row_maxima = T.sblock_alloc_buffer((G * rows,), "float32")
            row_weights = T.sblock_alloc_buffer((G * rows,), "float32")

            with isa.helpers():
                for age in T.parallel(W):
                    copy_queries(observed, first_row, newest, age, queries)
                for task in T.parallel(_PARTS * G):
                    with T.sblock("statistics"):
                        T.reads()
                        T.writes()
                        unpacked = page_scratch()
                        s = T.sblock_alloc_buffer((R, page_size), "float32")
                        maxima = T.sblock_alloc_buffer((rows, L), "float32")
                        sums = T.sblock_alloc_buffer((rows, L), "float32")
                        head: T.let = task % G
                        for r in T.serial(rows):
                            maxima[r, ramp(0)] = isa.splat(T.float32(NEVER))
                            sums[r, ramp(0)] = isa.zero()
                        for p in T.serial(first_page(kv_lengths, head, task), first_page(kv_lengths, head, task + G)):
                            head_page: T.let = T.cast(page_indices[head, p], "int64")
                            keys = read_page(k_pages, head_page, unpacked)
                            visible0: T.let = kv_lengths[head] - W + 1 - p * page_size
                            for r in T.serial(rows // R):
                                compute_scores(queries, head * rows + r * R, keys, s)
                                if visible0 + r * R // g < page_size:
                                    add_to_sums(s, r * R, visible0, True, maxima, sums)
                                else:
                                    add_to_sums(s, r * R, visible0, False, maxima, sums)
                        for r in T.serial(rows):
                            peak: T.let = isa.hmax(maxima[r, ramp(0)])
                            part_maxima[head * rows + r, task // G] = peak
                            part_sums[head * rows + r, task // G] = isa.hsum(
                                sums[r, ramp(0)] * isa.exp2(maxima[r, ramp(0)] - isa.splat(peak))
                            )
                for row in T.parallel(G * rows):
                    with T.sblock("merge"):
                        T.reads()
                        T.writes()
                        merge_parts(row, part_maxima, part_sums, row_maxima, row_weights)
                for task in T.parallel(_PARTS * G):
                    with T.sblock("probabilities"):
                        T.reads()
                        T.writes()
                        unpacked = page_scratch()
                        s = T.sblock_alloc_buffer((R, page_size), "float32")
                        means = T.sblock_alloc_buffer((page_size,), "float32")
                        head: T.let = task % G
                        for p in T.serial(first_page(kv_lengths, head, task), first_page(kv_lengths, head, task + G)):
                            head_page: T.let = T.cast(page_indices[head, p], "int64")
                            keys = read_page(k_pages, head_page, unpacked)
                            visible0: T.let = kv_lengths[head] - W + 1 - p * page_size
                            for v in T.unroll(vectors):
                                means[ramp(v * L)] = isa.zero()
                            for r in T.serial(rows // R):
                                row0: T.let = head * rows + r * R
                                compute_scores(queries, head * rows + r * R, keys, s)
                                if visible0 + r * R // g < page_size:
                                    add_to_means(s, r * R, visible0, True, row0, row_maxima, row_weights, means)
                                else:
                                    add_to_means(s, r * R, visible0, False, row0, row_maxima, row_weights, means)
                            for v in T.serial(vectors):
                                store_scores(
                                    scores, max_len, head, T.cast(p * page_size + v * L, "int64"), means[ramp(v * L)]
                                )
                        if task // G == _PARTS - 1:
                            end: T.let = T.cast(T.ceildiv(kv_lengths[head], page_size) * page_size, "int64")
                            for v in T.serial(T.ceildiv(T.max(max_len - end, T.int64(0)), T.int64(L))):
                                store_scores(scores, max_len, head, end + v * L, isa.zero())

    return kv_window_scores
