"""LLVM IR of the natural logarithm for float32 vectors.

x is m * 2**e with m in [sqrt(1/2), sqrt(2)); log(m) is the single-precision polynomial of the Cephes library (logf.c).
"""

_POLYNOMIAL = (  # of (m - 1)**11 ... (m - 1)**3
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_LOG_2_HIGH, _LOG_2_LOW = 0.693359375, -2.12194440e-4  # e times the first is exact
_SQRT_HALF_BITS = 0x3F3504F3


def logarithm_ir(n: int, splat, float_literal) -> str:
    """``x_log`` of ``n`` positive normal float32; ``splat(n, type, text)`` and ``float_literal(value)`` are text."""

    def f32(value: float) -> str:
        return splat(n, "float", float_literal(value))

    def i32(value: int) -> str:
        return splat(n, "i32", str(value))

    lines = [
        f"define <{n} x float> @x_log(<{n} x float> %x) {{",
        f"  %w = bitcast <{n} x float> %x to <{n} x i32>",
        f"  %d = sub <{n} x i32> %w, {i32(_SQRT_HALF_BITS)}",
        f"  %k = ashr <{n} x i32> %d, {i32(23)}",
        f"  %e = sitofp <{n} x i32> %k to <{n} x float>",
        f"  %f = and <{n} x i32> %d, {i32(0x7FFFFF)}",
        f"  %b = add <{n} x i32> %f, {i32(_SQRT_HALF_BITS)}",
        f"  %m = bitcast <{n} x i32> %b to <{n} x float>",
        f"  %t = fsub <{n} x float> %m, {f32(1.0)}",
        f"  %z = fmul <{n} x float> %t, %t",
        f"  %p0 = fmul contract <{n} x float> %t, {f32(_POLYNOMIAL[0])}",
        f"  %q0 = fadd contract <{n} x float> %p0, {f32(_POLYNOMIAL[1])}",
    ]
    for i, coefficient in enumerate(_POLYNOMIAL[2:], start=1):
        lines += [
            f"  %p{i} = fmul contract <{n} x float> %q{i - 1}, %t",
            f"  %q{i} = fadd contract <{n} x float> %p{i}, {f32(coefficient)}",
        ]
    last = len(_POLYNOMIAL) - 2
    lines += [
        f"  %c = fmul <{n} x float> %t, %z",
        f"  %y0 = fmul <{n} x float> %q{last}, %c",
        f"  %l = fmul contract <{n} x float> %e, {f32(_LOG_2_LOW)}",
        f"  %y1 = fadd contract <{n} x float> %y0, %l",
        f"  %h = fmul contract <{n} x float> %z, {f32(-0.5)}",
        f"  %y2 = fadd contract <{n} x float> %y1, %h",
        f"  %y3 = fadd <{n} x float> %t, %y2",
        f"  %g = fmul contract <{n} x float> %e, {f32(_LOG_2_HIGH)}",
        f"  %r = fadd contract <{n} x float> %y3, %g",
        f"  ret <{n} x float> %r",
    ]
    return "\n".join([*lines, "}"]) + "\n"
