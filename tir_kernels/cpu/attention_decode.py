"""Attention of one new token a sequence over the packed pages of the KV cache, the context split over tasks."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .attention_block import NEVER, attention_block
from .attention_shape import AttentionShape
from .isa import VectorISA

_MIN_PAGES = 4  # of a split: shorter ones spend their time waiting for their first page and being merged
_MIN_PARALLEL_ELEMENTS = 32768  # of the parts to merge; a parallel region costs about as long


def attention_decode(
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    page_size: int,
    dtype: str,
    isa: VectorISA,
    sm_scale: float,
    num_splits: int,
    kv_dtype: str = "model",
) -> PrimFunc:
    """(q, k_pages, v_pages, query_indptr, tiles, page_indptr, page_indices, kv_lengths, out), as for attention_prefill.

    q, out : dtype [B, H, d]; every sequence has one new token, so query_indptr and tiles are not read.

    A task is a (sequence, key/value head, split): its query heads share every load of K and V, and it leaves the
    unnormalised output, the maximum and the sum of its pages in a temporary buffer; a second loop merges the
    ``num_splits`` parts.
    """
    g = num_attention_heads // num_key_value_heads
    max_row_block = 7 if isa.num_vector_registers >= 32 else 4  # rows that leave registers for two vectors each
    R = -(-g // -(-g // max_row_block))  # the fewest blocks, all about the same size
    shape = AttentionShape(num_attention_heads, num_key_value_heads, head_dim, page_size, dtype, isa, R, kv_dtype)
    ramp = isa.ramp
    H, G, d, L, S = num_attention_heads, num_key_value_heads, head_dim, isa.lanes, num_splits
    pages = shape.pages
    num_blocks = -(-g // R)
    block = attention_block(shape, sm_scale, min(num_blocks, 2))
    rows = num_blocks * R

    def first_page(length, split):
        """Where a split begins: the last takes the rest, others a multiple of ``_MIN_PAGES`` pages, perhaps none."""
        return T.ceildiv(length, page_size) * split // (S * _MIN_PAGES) * _MIN_PAGES

    @T.inline
    def merge(row, part_outputs, part_maxima, part_sums, out):
        with T.sblock("merge"):
            T.reads()
            T.writes()
            maximum = T.sblock_alloc_buffer((1,), "float32")
            total = T.sblock_alloc_buffer((L,), "float32")
            merged = T.sblock_alloc_buffer((d,), "float32")
            maximum[0] = part_maxima[row // g, 0, row % g]
            for s in T.serial(1, S):
                maximum[0] = T.max(maximum[0], part_maxima[row // g, s, row % g])
            total[ramp(0)] = isa.zero()
            for v in T.serial(d // L):
                merged[ramp(v * L)] = isa.zero()
            for s in T.serial(S):
                if part_sums[row // g, s, row % g] > T.float32(0):
                    factor: T.let = isa.exp2(isa.splat(part_maxima[row // g, s, row % g] - maximum[0]))
                    total[ramp(0)] = total[ramp(0)] + isa.splat(part_sums[row // g, s, row % g]) * factor
                    for v in T.serial(d // L):
                        part: T.let = part_outputs[row // g, s, row % g, ramp(v * L)]
                        merged[ramp(v * L)] = merged[ramp(v * L)] + part * factor
            for v in T.serial(d // L):
                isa.store(out, merged[ramp(v * L)] / total[ramp(0)], row // H, row % H, v * L)

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
        k_pages = T.match_buffer(k_pages_handle, pages.key_shape(num_pages), pages.key_dtype)
        v_pages = T.match_buffer(v_pages_handle, pages.value_shape(num_pages), pages.value_dtype)
        T.match_buffer(query_indptr_handle, (batch_size + 1,), "int32")
        T.match_buffer(tiles_handle, (num_tiles, 2), "int32")
        page_indptr = T.match_buffer(page_indptr_handle, (G, batch_size + 1), "int32")
        page_indices = T.match_buffer(page_indices_handle, (num_indices,), "int32")
        kv_lengths = T.match_buffer(kv_lengths_handle, (G, batch_size), "int32")
        out = T.match_buffer(out_handle, (batch_size, H, d), dtype)
        with T.sblock("root"):
            T.reads()
            T.writes()
            part_outputs = T.sblock_alloc_buffer((batch_size * G, S, g, d), "float32")
            part_maxima = T.sblock_alloc_buffer((batch_size * G, S, g), "float32")
            part_sums = T.sblock_alloc_buffer((batch_size * G, S, g), "float32")
            with isa.helpers():
                for task in T.parallel(batch_size * G * S):
                    split: T.let = T.cast(task % S, "int32")
                    sequence: T.let = task // S // G
                    head: T.let = task // S % G
                    length: T.let = kv_lengths[head, sequence]
                    page0: T.let = first_page(length, split)
                    page_end: T.let = T.Select(
                        split == S - 1, T.ceildiv(length, page_size), first_page(length, split + 1)
                    )
                    if page0 == page_end:
                        for r in T.serial(g):
                            part_maxima[task // S, split, r] = T.float32(NEVER)
                            part_sums[task // S, split, r] = T.float32(0)
                    else:
                        with T.sblock("part"):
                            T.reads()
                            T.writes()
                            scratch = block.scratch(rows)
                            block.start(q, sequence, head, g, rows, scratch)
                            indices0: T.let = page_indptr[head, sequence]
                            for p in T.serial(page0, page_end):
                                head_page: T.let = T.cast(page_indices[indices0 + p], "int64")
                                next_pages = block.upcoming(page_indices, indices0, p, T.ceildiv(length, page_size))
                                block.enter(k_pages, v_pages, head_page, length - p * page_size, scratch)
                                for r in T.serial(num_blocks):
                                    block.update(
                                        k_pages,
                                        v_pages,
                                        head_page,
                                        next_pages,
                                        r * R,
                                        length - p * page_size,
                                        g,
                                        scratch,
                                    )
                            for r in T.serial(g):
                                part_maxima[task // S, split, r] = scratch.maxima[r]
                                part_sums[task // S, split, r] = isa.hsum(scratch.sums[r, ramp(0)])
                                for v in T.serial(d // L):
                                    part_outputs[task // S, split, r, ramp(v * L)] = scratch.outputs[r, ramp(v * L)]
                if batch_size * (H * S * d) < _MIN_PARALLEL_ELEMENTS:
                    for row in T.serial(batch_size * H):
                        merge(row, part_outputs, part_maxima, part_sums, out)
                else:
                    for row in T.parallel(batch_size * H):
                        merge(row, part_outputs, part_maxima, part_sums, out)

    return attention_decode
