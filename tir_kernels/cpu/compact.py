"""Moves the entries that a compression keeps to the front of the pages of the KV cache."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tir_kernels.kv_pages import KVPages, stored_dtype

from .isa import VectorISA
from .scratch import stack_buffer

_DIMS = 16  # of a task: a cache line of 32-bit words in a row of v_pages


def compact(
    num_key_value_heads: int, head_dim: int, page_size: int, dtype: str, isa: VectorISA, kv_dtype: str = "model"
) -> PrimFunc:
    """(k_pages, v_pages, source_pages, target_pages, kept, kept_lengths): entry kept[h, i] of head h becomes entry i.

    k_pages, v_pages : of dtype, or 8-bit if kv_dtype is "int8" (tir_kernels/kv_pages.py), updated in place
    source_pages : int32 [G, ns] of the entries so far, target_pages : int32 [G, nt] of the entries from now on. A
        target page is the source page at the same place, or no source page of any head.
    kept : int32 [G, max_kept], ascending without repetition; kept_lengths : int32 [G], how many of them count

    A task owns 16 dimensions of a head, the first one the scales of 8-bit entries, too. It reads an entry before it
    writes one at the same place or above, since kept[h, i] >= i.
    """
    G, d, L = num_key_value_heads, head_dim, isa.lanes
    pages = KVPages(head_dim, page_size, stored_dtype(kv_dtype, dtype))
    P = pages.pair
    bits = 32 // P

    def value_words(v_pages, page, offset, dim):
        """int32 words: value ``offset`` of a page in the lowest bits, one dimension a word."""
        words = T.reinterpret(f"int32x{L}", v_pages[page, offset // P, dim, T.ramp(0, 1, P * L)])
        shifted = T.shift_right(words, isa.splat(offset % P * bits))
        return T.bitwise_and(shifted, isa.splat(T.int32((1 << bits) - 1)))

    def combined(parts):
        """int32 words of the P elements in the lowest bits of as many vectors."""
        words = parts[0]
        for e, part in enumerate(parts[1:], 1):
            words = T.bitwise_or(words, T.shift_left(part, isa.splat(T.int32(e * bits))))
        return words

    @T.inline
    def move_keys(k_pages, target, sources, offsets, count, first_row, end_row):
        for c in T.serial(first_row, end_row):
            for i in T.serial(count):
                if P == 1:
                    k_pages[target, c, i, 0] = k_pages[sources[i], c, offsets[i], 0]
                else:
                    k_pages[target, c, i, T.ramp(0, 1, P)] = k_pages[sources[i], c, offsets[i], T.ramp(0, 1, P)]

    @T.inline
    def move_values(v_pages, target, sources, offsets, count, dim0):
        for i in T.serial(T.ceildiv(count, P)):
            for v in T.unroll(_DIMS // L):
                dim: T.let = dim0 + v * L
                if P == 1:
                    v_pages[target, i, dim, isa.ramp(0)] = v_pages[sources[i], offsets[i], dim, isa.ramp(0)]
                else:
                    entries = T.meta_var([T.min(P * i + e, count - 1) for e in range(P)])
                    words: T.let = combined([value_words(v_pages, sources[e], offsets[e], dim) for e in entries])
                    v_pages[target, i, dim, T.ramp(0, 1, P * L)] = T.reinterpret(f"{pages.dtype}x{P * L}", words)

    @T.inline
    def move_value_scales(v_pages, target, sources, offsets, count):
        row0 = T.meta_var(pages.value_scale_row)
        for i in T.serial(count):
            v_pages[target, row0 + i // d, i % d, T.ramp(0, 1, P)] = v_pages[
                sources[i], row0 + offsets[i] // d, offsets[i] % d, T.ramp(0, 1, P)
            ]

    @T.prim_func(s_tir=True)
    def kv_compact(
        k_pages_handle: T.handle,
        v_pages_handle: T.handle,
        source_pages_handle: T.handle,
        target_pages_handle: T.handle,
        kept_handle: T.handle,
        kept_lengths_handle: T.handle,
    ):
        T.func_attr({"global_symbol": "kv_compact", "tirx.noalias": True, "tirx.is_scheduled": True})
        num_pages = T.int64()
        num_sources = T.int64()
        num_targets = T.int64()
        max_kept = T.int64()
        k_pages = T.match_buffer(k_pages_handle, pages.key_shape(num_pages), pages.key_dtype)
        v_pages = T.match_buffer(v_pages_handle, pages.value_shape(num_pages), pages.value_dtype)
        source_pages = T.match_buffer(source_pages_handle, (G, num_sources), "int32")
        target_pages = T.match_buffer(target_pages_handle, (G, num_targets), "int32")
        kept = T.match_buffer(kept_handle, (G, max_kept), "int32")
        kept_lengths = T.match_buffer(kept_lengths_handle, (G,), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            with isa.helpers():
                for task in T.parallel(G * (d // _DIMS)):
                    with T.sblock("task"):
                        T.reads()
                        T.writes()
                        sources = stack_buffer(page_size, "int64")
                        offsets = stack_buffer(page_size, "int32")
                        head: T.let = task // (d // _DIMS)
                        dim0: T.let = task % (d // _DIMS) * _DIMS
                        for p in T.serial(T.ceildiv(kept_lengths[head], page_size)):
                            count: T.let = T.min(page_size, kept_lengths[head] - p * page_size)
                            for i in T.serial(count):
                                entry: T.let = kept[head, p * page_size + i]
                                sources[i] = T.cast(source_pages[head, entry // page_size], "int64")
                                offsets[i] = entry % page_size
                            target: T.let = T.cast(target_pages[head, p], "int64")
                            row: T.let = dim0 // P
                            move_keys(k_pages, target, sources, offsets, count, row, row + _DIMS // P)
                            move_values(v_pages, target, sources, offsets, count, dim0)
                            if pages.is_int8:
                                if dim0 == 0:
                                    scales = T.meta_var(pages.key_scale_row)
                                    move_keys(k_pages, target, sources, offsets, count, scales, scales + 1)
                                    move_value_scales(v_pages, target, sources, offsets, count)

    return kv_compact
