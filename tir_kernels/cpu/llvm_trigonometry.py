"""LLVM IR of sin and cos for float32 vectors, as RoPE needs them: absolute error below 2e-7 up to 1e7 radians.

The angle is reduced to [-pi/4, pi/4] in float64, where one multiple of pi/2 is exact enough (1e7 * 2**-53 = 1e-9); the
polynomials are the single-precision ones of the Cephes library (sinf.c).
"""

import math

_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)  # of x**7, x**5, x**3
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)  # of x**8, x**6, x**4
_ROUND = 1.5 * 2.0**52  # adding it leaves the rounded integer in the low bits of a float64


def trigonometry_ir(n: int, splat, float_literal) -> str:
    """``x_sin`` and ``x_cos`` of ``n`` float32; ``splat(n, type, text)`` and ``float_literal(value)`` are text."""

    def f32(value: float) -> str:
        return splat(n, "float", float_literal(value))

    def f64(value: float) -> str:
        return splat(n, "double", repr(value))

    def i32(value: int) -> str:
        return splat(n, "i32", str(value))

    return f"""
define <{n} x float> @x_quadrant_sin(<{n} x float> %x, <{n} x i32> %shift) {{
  %d = fpext <{n} x float> %x to <{n} x double>
  %t = fmul <{n} x double> %d, {f64(2 / math.pi)}
  %m = fadd <{n} x double> %t, {f64(_ROUND)}
  %k = fsub <{n} x double> %m, {f64(_ROUND)}
  %h = fmul <{n} x double> %k, {f64(math.pi / 2)}
  %e = fsub <{n} x double> %d, %h
  %r = fptrunc <{n} x double> %e to <{n} x float>
  %l = bitcast <{n} x double> %m to <{n} x i64>
  %w = trunc <{n} x i64> %l to <{n} x i32>
  %q = add <{n} x i32> %w, %shift
  %z = fmul <{n} x float> %r, %r
  %s0 = fmul <{n} x float> %z, {f32(_SIN[0])}
  %s1 = fadd <{n} x float> %s0, {f32(_SIN[1])}
  %s2 = fmul <{n} x float> %s1, %z
  %s3 = fadd <{n} x float> %s2, {f32(_SIN[2])}
  %s4 = fmul <{n} x float> %s3, %z
  %s5 = fmul <{n} x float> %s4, %r
  %s = fadd <{n} x float> %s5, %r
  %c0 = fmul <{n} x float> %z, {f32(_COS[0])}
  %c1 = fadd <{n} x float> %c0, {f32(_COS[1])}
  %c2 = fmul <{n} x float> %c1, %z
  %c3 = fadd <{n} x float> %c2, {f32(_COS[2])}
  %c4 = fmul <{n} x float> %c3, %z
  %c5 = fadd <{n} x float> %c4, {f32(-0.5)}
  %c6 = fmul <{n} x float> %c5, %z
  %c = fadd <{n} x float> %c6, {f32(1.0)}
  %odd = and <{n} x i32> %q, {i32(1)}
  %swap = icmp ne <{n} x i32> %odd, {i32(0)}
  %v = select <{n} x i1> %swap, <{n} x float> %c, <{n} x float> %s
  %two = and <{n} x i32> %q, {i32(2)}
  %sign = shl <{n} x i32> %two, {i32(30)}
  %b = bitcast <{n} x float> %v to <{n} x i32>
  %f = xor <{n} x i32> %b, %sign
  %y = bitcast <{n} x i32> %f to <{n} x float>
  ret <{n} x float> %y
}}
define <{n} x float> @x_sin(<{n} x float> %x) {{
  %y = call <{n} x float> @x_quadrant_sin(<{n} x float> %x, <{n} x i32> {i32(0)})
  ret <{n} x float> %y
}}
define <{n} x float> @x_cos(<{n} x float> %x) {{
  %y = call <{n} x float> @x_quadrant_sin(<{n} x float> %x, <{n} x i32> {i32(1)})
  ret <{n} x float> %y
}}
"""
