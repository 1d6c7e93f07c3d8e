"""Moves the entries that a compression keeps to the front of the pages of the KV cache."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .isa import VectorISA
from .scratch import stack_buffer

_DIMS = 16  # of a task: a cache line of 32-bit words in a row of v_pages


def compact(num_key_value_heads: int, head_dim: int, page_size: int, dtype: str, isa: VectorISA) -> PrimFunc:
    """(k_pages, v_pages, source_pages, target_pages, kept, kept_lengths): entry kept[h, i] of head h becomes entry i.

    k_pages : dtype [head pages, d / P, page_size, P], v_pages : dtype [head pages, page_size / P, d, P], both updated
        in place; P is 2 for bfloat16, else 1
    source_pages : int32 [G, ns] of the entries so far, target_pages : int32 [G, nt] of the entries from now on. A
        target page is the source page at the same place, or no source page of any head.
    kept : int32 [G, max_kept], ascending without repetition; kept_lengths : int32 [G], how many of them count

    A task owns 16 dimensions of a head. It reads an entry before it writes one at the same place or above, since
    kept[h, i] >= i.
    """
    G, d, L = num_key_value_heads, head_dim, isa.lanes
    P = 2 if dtype == "bfloat16" else 1

    def value_words(v_pages, page, offset, dim):
        """int32 words: bfloat16 value ``offset`` of a page in the lower halves, one dimension a word."""
        words = T.reinterpret(f"int32x{L}", v_pages[page, offset // 2, dim, T.ramp(0, 1, 2 * L)])
        shifted = T.shift_right(words, isa.splat(offset % 2 * 16))
        return T.bitwise_and(shifted, isa.splat(T.int32(0xFFFF)))

    def combined(even, odd):
        return T.bitwise_or(even, T.shift_left(odd, isa.splat(T.int32(16))))

    @T.inline
    def move_keys(k_pages, target, pages, offsets, count, dim0):
        for c in T.serial(dim0 // P, (dim0 + _DIMS) // P):
            for i in T.serial(count):
                if P == 1:
                    k_pages[target, c, i, 0] = k_pages[pages[i], c, offsets[i], 0]
                else:
                    k_pages[target, c, i, T.ramp(0, 1, 2)] = k_pages[pages[i], c, offsets[i], T.ramp(0, 1, 2)]

    @T.inline
    def move_values(v_pages, target, pages, offsets, count, dim0):
        for i in T.serial(T.ceildiv(count, P)):
            for v in T.unroll(_DIMS // L):
                dim: T.let = dim0 + v * L
                if P == 1:
                    v_pages[target, i, dim, isa.ramp(0)] = v_pages[pages[i], offsets[i], dim, isa.ramp(0)]
                else:
                    odd: T.let = T.min(2 * i + 1, count - 1)
                    words: T.let = combined(
                        value_words(v_pages, pages[2 * i], offsets[2 * i], dim),
                        value_words(v_pages, pages[odd], offsets[odd], dim),
                    )
                    v_pages[target, i, dim, T.ramp(0, 1, 2 * L)] = T.reinterpret(f"bfloat16x{2 * L}", words)

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
        k_pages = T.match_buffer(k_pages_handle, (num_pages, d // P, page_size, P), dtype)
        v_pages = T.match_buffer(v_pages_handle, (num_pages, page_size // P, d, P), dtype)
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
                        pages = stack_buffer(page_size, "int64")
                        offsets = stack_buffer(page_size, "int32")
                        head: T.let = task // (d // _DIMS)
                        dim0: T.let = task % (d // _DIMS) * _DIMS
                        for p in T.serial(T.ceildiv(kept_lengths[head], page_size)):
                            count: T.let = T.min(page_size, kept_lengths[head] - p * page_size)
                            for i in T.serial(count):
                                entry: T.let = kept[head, p * page_size + i]
                                pages[i] = T.cast(source_pages[head, entry // page_size], "int64")
                                offsets[i] = entry % page_size
                            target: T.let = T.cast(target_pages[head, p], "int64")
                            move_keys(k_pages, target, pages, offsets, count, dim0)
                            move_values(v_pages, target, pages, offsets, count, dim0)

    return kv_compact
