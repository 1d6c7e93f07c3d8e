"""New entries of 8-bit pages of the KV cache (tir_kernels/kv_pages.py)."""

from tvm.script import tirx as T

from tir_kernels.kv_pages import KVPages

from .isa import VectorISA
from .quantized_row import MAX_CODE, code_bytes, quantized, rotated
from .scratch import stack_buffer


def store_int8_key(isa: VectorISA, pages: KVPages, key, centre, k_pages, page, offset) -> None:
    """Statements: float32 key[0, :], less centre[0, :] if that is not None, becomes entry ``offset`` of a page."""
    d, L = pages.head_dim, isa.lanes
    places = [(0, isa.ramp(c)) for c in range(0, d, L)]
    values = rotated(isa, [T.Bind(key[at] - centre[at] if centre is not None else key[at]) for at in places])
    largest, rounded = quantized(isa, values, offset=128)
    codes = stack_buffer(d, "uint8")
    for v, value in enumerate(rounded):
        T.buffer_store(codes, code_bytes(isa, value, "uint8"), [isa.ramp(v * L)])
    with T.serial(d // 4) as word:
        T.buffer_store(k_pages, codes[T.ramp(word * 4, 1, 4)], [page, word, offset, T.ramp(0, 1, 4)])
    scale = T.reinterpret("uint8x4", largest * T.float32(1 / MAX_CODE))
    T.buffer_store(k_pages, scale, [page, pages.key_scale_row, offset, T.ramp(0, 1, 4)])


def store_int8_value(isa: VectorISA, pages: KVPages, qkv, token, row, v_pages, page, offset) -> None:
    """Statements: qkv[token, row, :] becomes entry ``offset`` of a page."""
    d, L = pages.head_dim, isa.lanes
    values = [T.Bind(isa.load(qkv, token, row, c)) for c in range(0, d, L)]
    largest, rounded = quantized(isa, values)
    codes = stack_buffer(d, "int8")
    for v, value in enumerate(rounded):
        T.buffer_store(codes, code_bytes(isa, value, "int8"), [isa.ramp(v * L)])
    with T.serial(d) as c:
        T.buffer_store(v_pages, codes[c], [page, offset // 4, c, offset % 4])
    scale = T.reinterpret("int8x4", largest * T.float32(1 / MAX_CODE))
    place = [page, pages.value_scale_row + offset // d, offset % d, T.ramp(0, 1, 4)]
    T.buffer_store(v_pages, scale, place)
