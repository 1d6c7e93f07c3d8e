"""Element-wise maximum and minimum of the keys of every block: what a query segment is compared with."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tir_kernels.kv_pages import KVPages, stored_dtype

from .attention_shape import AttentionShape
from .isa import VectorISA
from .scratch import stack_buffer
from .unpacked_pages import pack_key_words, rotate_keys, unpack_keys
from .vector_ranges import isa_for_width, vector_starts

_PARTS = 32  # tasks that share the pages of a sequence and key/value head


def block_representatives(
    num_key_value_heads: int,
    head_dim: int,
    page_size: int,
    block_size: int,
    dtype: str,
    isa: VectorISA,
    kv_dtype: str = "model",
) -> PrimFunc:
    """(k_pages, page_indptr, page_indices, kv_lengths, block_ranges, representatives); the last is updated in place.

    k_pages : of dtype, or 8-bit if kv_dtype is "int8" (tir_kernels/kv_pages.py)
    page_indptr : int32 [G, B + 1] into page_indices int32 [T], kv_lengths : int32 [G, B]
    block_ranges : int32 [B, 2], blocks [first, end) of each sequence; end is at most ceil(length / block_size)
    representatives : dtype [head pages, d / P, 2 * page_size / block_size, P], per dimension the maxima of the blocks
        of the page, then the minima; P is 2 for bfloat16, else 1. Those of 8-bit keys are of what is stored, in the
        dimensions from before its rotation, rounded to dtype.

    The last block of a sequence may be cut off: its representatives are those of the entries that exist. The pages of
    a range are computed as a whole, so also the blocks before ``first`` in its first page; what stands for the blocks
    after the last entry is undefined.
    """
    G, d, P = num_key_value_heads, head_dim, KVPages(head_dim, page_size, dtype).pair
    pages = KVPages(head_dim, page_size, stored_dtype(kv_dtype, dtype))
    num_blocks, words = page_size // block_size, d // P
    columns = 2 * num_blocks
    isa = isa_for_width(isa, min(words, columns))
    L, ramp = isa.lanes, isa.ramp
    starts = vector_starts(isa, words)
    word_dtype = "int32" if P == 2 else "float32"
    stored = AttentionShape(G, G, d, page_size, dtype, isa, 1, kv_dtype)

    def take(vector, extremes, is_first: bool) -> None:
        """Statements: a vector of words of one key joins the running [maxima, minima] of each half of the words."""
        for half, value in enumerate(isa.halves_of_bf16(vector) if P == 2 else (vector,)):
            for side, better in enumerate((isa.vmax, isa.vmin)):
                at = ramp((2 * half + side) * L)
                T.buffer_store(extremes, value if is_first else better(extremes[at], value), [at])

    def words_of(extremes, side: int):
        """The running maxima (side 0) or minima (1) as words; exact, they are copies."""
        if P == 1:
            return extremes[ramp(side * L)]
        lower, upper = (T.reinterpret(f"int32x{L}", extremes[ramp((2 * half + side) * L)]) for half in range(2))
        low_bits = T.bitwise_and(T.shift_right(lower, isa.splat(T.int32(16))), isa.splat(T.int32(0xFFFF)))
        return T.bitwise_or(low_bits, upper)

    def first_of_words(words_of_page, source, row, column):
        """The first element there: of a pool, or of a scratch buffer of words."""
        is_pool = len(words_of_page.shape) == 4
        return words_of_page[source, row, column, 0] if is_pool else words_of_page[source, row, column]

    @T.inline
    def represent(words_of_page, source, representatives, page, num_entries, first_word):
        """The L words from ``first_word`` on of a page of which the first ``num_entries`` entries exist; its words are
        page ``source`` of words_of_page."""
        with T.sblock("represent"):
            T.reads()
            T.writes()
            keys = stack_buffer(page_size * L, word_dtype)  # [entry, word]
            found = stack_buffer(columns * L, word_dtype)  # [column, word]
            for t in T.serial(page_size // L):
                T.evaluate(
                    isa.transpose(
                        keys[t * L * L],
                        T.int64(L),
                        first_of_words(words_of_page, source, first_word, t * L),
                        T.int64(page_size),
                    )
                )
            for block in T.serial((num_entries + block_size - 1) // block_size):
                with T.sblock("block"):
                    T.reads()
                    T.writes()
                    extremes = stack_buffer(2 * P * L)
                    first: T.let = block * block_size
                    take(keys[ramp(first * L)], extremes, is_first=True)
                    for i in T.serial(T.min(num_entries - first, block_size) - 1):
                        take(keys[ramp((first + i + 1) * L)], extremes, is_first=False)
                    found[ramp(block * L)] = words_of(extremes, 0)
                    found[ramp((num_blocks + block) * L)] = words_of(extremes, 1)
            for c in T.serial(columns // L):
                T.evaluate(
                    isa.transpose(
                        representatives[page, first_word, c * L, 0], T.int64(columns), found[c * L * L], T.int64(L)
                    )
                )

    @T.inline
    def represent_int8(k_pages, representatives, page, num_entries):
        with T.sblock("represent_int8"):
            T.reads()
            T.writes()
            keys = T.sblock_alloc_buffer((1, d, page_size), "float32")
            key_words = T.sblock_alloc_buffer((1, words, page_size), word_dtype)
            unpack_keys(stored, k_pages, page, keys)
            rotate_keys(stored, keys)
            pack_key_words(stored, keys, key_words)
            for v in T.serial(starts.count):
                represent(key_words, 0, representatives, page, num_entries, starts[v])

    @T.prim_func(s_tir=True)
    def block_representatives(
        k_pages_handle: T.handle,
        page_indptr_handle: T.handle,
        page_indices_handle: T.handle,
        kv_lengths_handle: T.handle,
        block_ranges_handle: T.handle,
        representatives_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        num_pages = T.int64()
        batch_size = T.int64()
        num_indices = T.int64()
        k_pages = T.match_buffer(k_pages_handle, pages.key_shape(num_pages), pages.key_dtype)
        page_indptr = T.match_buffer(page_indptr_handle, (G, batch_size + 1), "int32")
        page_indices = T.match_buffer(page_indices_handle, (num_indices,), "int32")
        kv_lengths = T.match_buffer(kv_lengths_handle, (G, batch_size), "int32")
        block_ranges = T.match_buffer(block_ranges_handle, (batch_size, 2), "int32")
        representatives = T.match_buffer(representatives_handle, (num_pages, words, columns, P), dtype)
        with T.sblock("root"):
            T.reads()
            T.writes()
            with isa.helpers():
                # Parts are the outer index: every thread gets its share of each sequence, however unequal they are.
                for task in T.parallel(_PARTS * G * batch_size):
                    with T.sblock("task"):
                        T.reads()
                        T.writes()
                        part: T.let = T.cast(task // (G * batch_size), "int32")
                        head: T.let = task // batch_size % G
                        sequence: T.let = task % batch_size
                        first: T.let = block_ranges[sequence, 0] // num_blocks
                        count: T.let = (block_ranges[sequence, 1] + num_blocks - 1) // num_blocks - first
                        begin: T.let = first + count * part // _PARTS
                        end: T.let = first + count * (part + 1) // _PARTS
                        indices0: T.let = page_indptr[head, sequence]
                        for i in T.serial(end - begin):
                            page: T.let = T.cast(page_indices[indices0 + begin + i], "int64")
                            num_entries: T.let = T.min(kv_lengths[head, sequence] - (begin + i) * page_size, page_size)
                            if pages.is_int8:
                                represent_int8(k_pages, representatives, page, num_entries)
                            else:
                                for v in T.serial(starts.count):
                                    represent(k_pages, page, representatives, page, num_entries, starts[v])

    return block_representatives
