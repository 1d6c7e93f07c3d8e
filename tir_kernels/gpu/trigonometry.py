"""cos and sin of float32 angles as RoPE needs them, in 32-bit arithmetic that is the same on every GPU.

A GPU's own functions are not enough: those of WebGPU and Metal lose all accuracy at large angles, those of CUDA reduce
such angles in local memory. Here an angle's fraction of a turn is exact integer arithmetic; the polynomials are the
single-precision ones of the Cephes library (sinf.c).
"""

import math

from tvm.script import tirx as T

from .register import register

_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)  # of x**7, x**5, x**3
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)  # of x**8, x**6, x**4
_TURNS_PER_RADIAN = 0x28BE60DB9391054A  # 2**64 / (2 pi)
_RADIANS_PER_UNIT = 2 * math.pi * 2.0**-32
_MANTISSA_BITS = 23
_EXPONENT_BIAS = 127
_MOST_SHIFT = 63  # an angle that would be shifted further is 0 in units of 2**-32 turns


def _product_digits(mantissa) -> list:
    """``mantissa`` (uint32 of 24 bits) times _TURNS_PER_RADIAN: six digits in base 2**16, the lowest first."""
    halves = (mantissa & T.uint32(0xFFFF), mantissa >> T.uint32(16))
    columns = [[] for _ in range(6)]
    for i in range(4):
        for j, half in enumerate(halves):
            product = register(half * T.uint32(_TURNS_PER_RADIAN >> 16 * i & 0xFFFF), "uint32")
            columns[i + j].append(product & T.uint32(0xFFFF))
            columns[i + j + 1].append(product >> T.uint32(16))
    digits, carry = [], T.uint32(0)
    for column in columns:
        total = register(sum(column, start=carry), "uint32")
        digits.append(total & T.uint32(0xFFFF))
        carry = total >> T.uint32(16)
    return digits


def _turns(angle):
    """uint32: ``angle`` modulo 2 pi in units of 2**-32 turns; the angle is mantissa * 2**-shift."""
    bits = register(T.reinterpret("uint32", angle), "uint32")
    exponent = T.cast(bits >> T.uint32(_MANTISSA_BITS), "int32") - _EXPONENT_BIAS
    shift = register(T.cast(T.min(_MANTISSA_BITS - exponent, _MOST_SHIFT), "uint32"), "uint32")
    implicit_one = 1 << _MANTISSA_BITS
    mantissa = register((bits & T.uint32(implicit_one - 1)) | T.uint32(implicit_one), "uint32")
    digits = _product_digits(mantissa)
    low = register(digits[2] | (digits[3] << T.uint32(16)), "uint32")
    high = register(digits[4] | (digits[5] << T.uint32(16)), "uint32")
    # A shift by 32 is undefined, hence the steps.
    within = register(shift & T.uint32(31), "uint32")
    both = (low >> within) | ((high << T.uint32(1)) << (T.uint32(31) - within))
    return register(T.Select(shift < T.uint32(32), both, high >> within), "uint32")


def cos_sin(angle) -> tuple:
    """float32 expressions (cos, sin) of a float32 ``angle`` from 0 to 2**24 radians; absolute error below 3e-7.

    The statements that compute them come along.
    """
    turns = _turns(angle)
    quadrant = register((turns + T.uint32(1 << 29)) >> T.uint32(30), "uint32")
    rest = T.reinterpret("int32", turns - (quadrant << T.uint32(30)))
    x = register(T.cast(rest, "float32") * T.float32(_RADIANS_PER_UNIT), "float32")
    square = register(x * x, "float32")
    sin, cos = ((T.float32(a) * square + T.float32(b)) * square + T.float32(c) for a, b, c in (_SIN, _COS))
    sin = register(sin * square * x + x, "float32")
    cos = register((cos * square - T.float32(0.5)) * square + T.float32(1), "float32")
    odd = (quadrant & T.uint32(1)) > T.uint32(0)
    cos_sign = T.Select(((quadrant + T.uint32(1)) & T.uint32(2)) > T.uint32(0), T.float32(-1), T.float32(1))
    sin_sign = T.Select((quadrant & T.uint32(2)) > T.uint32(0), T.float32(-1), T.float32(1))
    return T.Select(odd, sin, cos) * cos_sign, T.Select(odd, cos, sin) * sin_sign
