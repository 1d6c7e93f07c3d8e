"""8-bit pages of the KV cache as float32, for CPUs without an 8-bit dot product and for what reads a page once."""

from dataclasses import replace
from types import SimpleNamespace

from tvm.script import tirx as T

from tir_kernels.kv_pages import KVPages, rotation_block

from .attention_shape import AttentionShape
from .quantized_row import rotated
from .scratch import stack_buffer

_KEY_OFFSET = 128.0


def unpack_keys(shape: AttentionShape, pages, page, keys) -> None:
    """Statements: keys[0, c, t] of float32 [1, head_dim, page_size] = the rotated keys of an 8-bit page."""
    isa = shape.isa
    with T.serial(shape.head_dim // 4) as word:
        with T.serial(shape.page_size // isa.lanes) as v:
            scales = T.Bind(shape.key_scales(pages, page, v * isa.lanes))
            words = T.Bind(shape.page_words(pages, page, word, v * isa.lanes))
            for e in range(4):
                codes = T.shift_right(words, isa.splat(T.int32(8 * e))) & isa.splat(T.int32(255))
                value = T.cast(codes, f"float32x{isa.lanes}") - isa.splat(T.float32(_KEY_OFFSET))
                T.buffer_store(keys, value * scales, [0, 4 * word + e, isa.ramp(v * isa.lanes)])


def unpack_values(shape: AttentionShape, pages, page, values) -> None:
    """Statements: values[0, t, c] of float32 [1, page_size, head_dim] = the values of an 8-bit page."""
    isa = shape.isa
    scales = stack_buffer(shape.page_size)
    with T.serial(shape.page_size // isa.lanes) as v:
        T.buffer_store(scales, shape.value_scales(pages, page, v * isa.lanes), [isa.ramp(v * isa.lanes)])
    with T.serial(shape.page_size // 4) as word:
        with T.serial(shape.head_dim // isa.lanes) as v:
            words = T.Bind(shape.page_words(pages, page, word, v * isa.lanes))
            for e in range(4):
                shifted = T.shift_left(words, isa.splat(T.int32(24 - 8 * e)))
                codes = T.shift_right(shifted, isa.splat(T.int32(24)))  # keeps the sign
                value = T.cast(codes, f"float32x{isa.lanes}") * isa.splat(scales[4 * word + e])
                T.buffer_store(values, value, [0, 4 * word + e, isa.ramp(v * isa.lanes)])


def rotate_query(shape: AttentionShape, queries, row) -> None:
    """Statements: float32 queries[row, :] meets rotated keys from now on."""
    isa = shape.isa
    starts = range(0, shape.head_dim, isa.lanes)
    values = rotated(isa, [T.Bind(queries[row, isa.ramp(start)]) for start in starts])
    for start, value in zip(starts, values):
        T.buffer_store(queries, value, [row, isa.ramp(start)])


def rotate_keys(shape: AttentionShape, keys) -> None:
    """Statements: undo the rotation of unpacked keys, but for a factor that :func:`pack_key_words` applies."""
    isa, block = shape.isa, rotation_block(shape.head_dim)
    distance = 1
    while distance < block:
        with T.serial(shape.head_dim // (2 * distance)) as pair:
            with T.serial(distance) as i:
                with T.serial(shape.page_size // isa.lanes) as v:
                    first = [0, pair * (2 * distance) + i, isa.ramp(v * isa.lanes)]
                    second = [0, pair * (2 * distance) + i + distance, isa.ramp(v * isa.lanes)]
                    a, b = T.Bind(keys[tuple(first)]), T.Bind(keys[tuple(second)])
                    T.buffer_store(keys, a + b, first)
                    T.buffer_store(keys, a - b, second)
        distance *= 2


def pack_key_words(shape: AttentionShape, keys, words) -> None:
    """Statements: words [1, head_dim / P, page_size] of the model's dtype = the keys of :func:`rotate_keys`."""
    isa, pair = shape.isa, KVPages(shape.head_dim, shape.page_size, shape.dtype).pair
    factor = isa.splat(T.float32(rotation_block(shape.head_dim) ** -0.5))
    with T.serial(shape.head_dim // pair) as word:
        with T.serial(shape.page_size // isa.lanes) as v:
            values = [keys[0, word * pair + e, isa.ramp(v * isa.lanes)] * factor for e in range(pair)]
            packed = values[0] if pair == 1 else isa.pair_bf16(*values)
            T.buffer_store(words, packed, [0, word, isa.ramp(v * isa.lanes)])


def unpacked_pages(shape: AttentionShape, block: SimpleNamespace) -> SimpleNamespace:
    """The statements of ``block``, an attention_block for ``shape.unpacked``, for 8-bit pages: ``enter`` unpacks a page
    into scratch memory, which stays in the L1 cache while all rows meet it."""
    d, page = shape.head_dim, shape.page_size

    def scratch(rows: int):
        pages = SimpleNamespace(
            keys=T.sblock_alloc_buffer((1, d, page), "float32"), values=T.sblock_alloc_buffer((1, page, d), "float32")
        )
        return T.meta_var(replace(block.scratch(rows).value, pages=pages))

    @T.inline
    def start(q, token0, head, num_rows, num_padded_rows, s):
        block.start(q, token0, head, num_rows, num_padded_rows, s)
        for r in T.serial(num_rows):
            rotate_query(shape, s.queries, r)

    @T.inline
    def enter(k_pages, v_pages, head_page, num_entries, s):
        unpack_keys(shape, k_pages, head_page, s.pages.keys)
        unpack_values(shape, v_pages, head_page, s.pages.values)

    @T.inline
    def update(k_pages, v_pages, head_page, next_pages, row0, visible0, num_rows, s, causal=True):
        block.update(s.pages.keys, s.pages.values, 0, (), row0, visible0, num_rows, s, causal=causal)

    return SimpleNamespace(
        scratch=scratch, upcoming=block.upcoming, start=start, enter=enter, update=update, finish=block.finish
    )
