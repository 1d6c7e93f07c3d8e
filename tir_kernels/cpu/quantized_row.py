"""Quantizing a row of float32 vectors to 8-bit codes, and the rotation that makes its elements alike in size first."""

from functools import reduce

from tvm.script import tirx as T

from tir_kernels.kv_pages import rotation_block

from .isa import VectorISA

MAX_CODE = 127.0
# Added to a float32 below 2**22 it leaves the integer nearest to it in the low bits.
ROUNDING = 1.5 * 2**23
_ROUNDING_BITS = 0x4B400000
TINY = 1e-30  # a smaller maximum counts as zero: its inverse would overflow


def magnitude(isa: VectorISA, value):
    """abs(value) of a float32 vector."""
    bits = T.reinterpret(f"int32x{isa.lanes}", value) & isa.splat(T.int32(0x7FFFFFFF))
    return T.Bind(T.reinterpret(f"float32x{isa.lanes}", bits))


def quantized(isa: VectorISA, values: list, offset: int = 0) -> tuple:
    """Statements: (max|x| of the row, float32 vectors ROUNDING + offset + q) with x = max|x| / 127 * q.

    The low byte of a result's bits is offset + q.
    """
    largest = T.Bind(isa.hmax(reduce(isa.vmax, (magnitude(isa, value) for value in values))))
    inverse = T.if_then_else(largest > T.float32(TINY), T.float32(MAX_CODE) / largest, T.float32(0))
    inverse = T.Bind(isa.splat(inverse))
    return largest, [T.Bind(value * inverse + isa.splat(T.float32(ROUNDING + offset))) for value in values]


def code_bytes(isa: VectorISA, rounded, dtype: str):
    """The codes of a result of :func:`quantized` as a vector of ``dtype``, int8 or uint8."""
    return T.cast(T.reinterpret(f"int32x{isa.lanes}", rounded), f"{dtype}x{isa.lanes}")


def codes_of(isa: VectorISA, rounded):
    """The codes of a result of :func:`quantized` with offset 0, int32. Not by a subtraction of floats, which the
    compiler would take for one that leaves nothing to round."""
    return T.reinterpret(f"int32x{isa.lanes}", rounded) - isa.splat(T.int32(_ROUNDING_BITS))


def rotated(isa: VectorISA, values: list) -> list:
    """Statements: a row times the orthonormal Hadamard matrix of each block of ``rotation_block`` elements. The matrix
    is its own inverse."""
    lanes, block = isa.lanes, rotation_block(len(values) * isa.lanes)
    values = [T.Bind(isa.hadamard(value)) for value in values]
    distance = 1
    while distance < block // lanes:
        values = [
            T.Bind(values[i ^ distance] - value if i & distance else value + values[i ^ distance])
            for i, value in enumerate(values)
        ]
        distance *= 2
    return [T.Bind(value * isa.splat(T.float32(block**-0.5))) for value in values]
