"""Scattered blocks of a packed KV cache, copied together a page's worth at a time."""

from dataclasses import dataclass
from types import SimpleNamespace

from tvm.script import tirx as T

from .attention_shape import AttentionShape

_CACHE_LINE = 64  # bytes
_TIMES_ASKED = 2  # a CPU drops prefetches when its queue is full


@dataclass(frozen=True)
class GatheredPage:
    """One page of chosen entries in the layout of the pools, its elements as words."""

    keys: T.Buffer  # [1, head_dim / P, page_size], and a row with the scales of 8-bit keys
    values: T.Buffer  # [1, page_size / P, head_dim], and rows with the scales of 8-bit values


@dataclass(frozen=True)
class ChosenList:
    """TIR expressions: the blocks that one key/value head of a query tile sees before ``own_page`` of its sequence."""

    page_indices: T.Buffer
    indices0: object  # first page of the sequence in page_indices
    block_lists: T.Buffer
    segment: object
    head: object
    count: object
    own_page: object  # where the tile's segment begins


def chosen_blocks(shape: AttentionShape, block_size: int) -> SimpleNamespace:
    """``per_page`` (blocks), and TVMScript statements ``scratch()``, ``gather(...)`` and ``prefetch(...)``."""
    isa, L, d, page, P = shape.isa, shape.isa.lanes, shape.head_dim, shape.page_size, shape.pair
    pages = shape.pages
    per_page = page // block_size
    copied = min(L, block_size)  # words of a key row at a time
    word_bytes = 4
    block_rows = block_size // P  # of V
    key_lines_per_row = max(1, block_size * word_bytes // _CACHE_LINE)
    value_lines = block_rows * d * word_bytes // _CACHE_LINE
    words_per_line = _CACHE_LINE // word_bytes

    def scratch():
        return T.meta_var(
            GatheredPage(
                keys=T.sblock_alloc_buffer(pages.key_shape(1)[:3], shape.word_dtype),
                values=T.sblock_alloc_buffer(pages.value_shape(1)[:3], shape.word_dtype),
            )
        )

    @T.inline
    def copy_value_scales(v_pages, head_page, column, target, gathered):
        for v in T.unroll(block_size // copied):
            place: T.let = target + v * copied
            gathered.values[0, pages.value_scale_row + place // d, T.ramp(place % d, 1, copied)] = shape.page_words(
                v_pages,
                head_page,
                pages.value_scale_row + (column + v * copied) // d,
                (column + v * copied) % d,
                count=copied,
            )

    @T.inline
    def gather(k_pages, v_pages, c, chosen, gathered):
        """Copy the chosen blocks from number ``c * per_page`` on; the rest of the last page keeps what it holds."""
        for j in T.serial(T.min(chosen.count - c * per_page, per_page)):
            block: T.let = chosen.block_lists[chosen.segment, chosen.head, c * per_page + j]
            head_page: T.let = T.cast(chosen.page_indices[chosen.indices0 + block // per_page], "int64")
            column: T.let = block % per_page * block_size
            for w in T.serial(pages.key_rows):
                for v in T.unroll(block_size // copied):
                    gathered.keys[0, w, T.ramp(j * block_size + v * copied, 1, copied)] = shape.page_words(
                        k_pages, head_page, w, column + v * copied, count=copied
                    )
            for t in T.serial(block_rows):
                for v in T.serial(d // L):
                    gathered.values[0, j * block_rows + t, isa.ramp(v * L)] = shape.page_words(
                        v_pages, head_page, column // P + t, v * L
                    )
            if pages.is_int8:
                copy_value_scales(v_pages, head_page, column, j * block_size, gathered)

    @T.inline
    def prefetch(k_pages, v_pages, c, row_block, chosen):
        """Each of the first row blocks asks for one chosen block from number ``c * per_page`` on. The tile's own
        segment follows the chosen blocks."""
        if row_block < _TIMES_ASKED * per_page:
            number: T.let = c * per_page + row_block % per_page
            block: T.let = T.if_then_else(
                number < chosen.count,
                chosen.block_lists[chosen.segment, chosen.head, T.min(number, chosen.count - 1)],
                chosen.own_page * per_page + number - chosen.count,
            )
            head_page: T.let = T.cast(chosen.page_indices[chosen.indices0 + block // per_page], "int64")
            column: T.let = block % per_page * block_size
            for w in T.serial(pages.key_rows):
                for line in T.unroll(key_lines_per_row):
                    T.evaluate(isa.prefetch(k_pages[head_page, w, column + line * words_per_line, 0]))
            for line in T.serial(value_lines):
                T.evaluate(isa.prefetch(v_pages[head_page, column // P, line * words_per_line, 0]))

    return SimpleNamespace(per_page=per_page, scratch=scratch, gather=gather, prefetch=prefetch)
