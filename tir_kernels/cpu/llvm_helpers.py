"""LLVM IR of the vector helpers that TIR cannot express: one text per feature tier, the same function names in each.

TVM's LLVM code generator has no bfloat vector type, turns ``exp2`` into scalar libm calls and ``max`` into a compare
that keeps NaN rules. A kernel therefore imports this text (``pragma_import_llvm``) and calls the ``x_*`` functions;
LLVM inlines them to bare instructions. bfloat16 data travels as int32 words that hold two consecutive elements, the
lower one first.
"""

import numpy as np

from .llvm_int8 import avx512_ir, hadamard_ir
from .llvm_logarithm import logarithm_ir
from .llvm_memory import memory_ir
from .llvm_trigonometry import trigonometry_ir


def exp2_coefficients(degree: int) -> list[float]:
    """Coefficients c0..c_degree of the least-squares polynomial of 2**f on [-0.5, 0.5], relative error weighted."""
    f = np.cos(np.pi * (np.arange(400) + 0.5) / 400) * 0.5
    y = np.exp2(f)
    powers = np.vander(f, degree + 1, increasing=True)
    return np.linalg.lstsq(powers / y[:, None], np.ones_like(f), rcond=None)[0].tolist()


def _float(value: float) -> str:
    """An LLVM float literal: LLVM wants the exact double that equals the float32 value."""
    return "0x" + np.float64(np.float32(value)).tobytes()[::-1].hex().upper()


def _splat(lanes: int, element: str, value: str) -> str:
    return "<" + ", ".join(f"{element} {value}" for _ in range(lanes)) + ">"


def _common(n: int) -> str:
    return f"""
declare float @llvm.vector.reduce.fmax.v{n}f32(<{n} x float>)
declare float @llvm.vector.reduce.fadd.v{n}f32(float, <{n} x float>)
define float @x_hmax(<{n} x float> %a) {{
  %r = call nnan nsz float @llvm.vector.reduce.fmax.v{n}f32(<{n} x float> %a)
  ret float %r
}}
define float @x_hsum(<{n} x float> %a) {{
  %r = call reassoc nsz float @llvm.vector.reduce.fadd.v{n}f32(float -0.0, <{n} x float> %a)
  ret float %r
}}
define <{n} x float> @x_vmax(<{n} x float> %a, <{n} x float> %b) {{
  %c = fcmp nnan nsz ogt <{n} x float> %a, %b
  %r = select nnan nsz <{n} x i1> %c, <{n} x float> %a, <{n} x float> %b
  ret <{n} x float> %r
}}
define <{n} x float> @x_vmin(<{n} x float> %a, <{n} x float> %b) {{
  %c = fcmp nnan nsz olt <{n} x float> %a, %b
  %r = select nnan nsz <{n} x i1> %c, <{n} x float> %a, <{n} x float> %b
  ret <{n} x float> %r
}}
define <{n} x float> @x_from_bf16(<{n} x i16> %a) {{
  %w = zext <{n} x i16> %a to <{n} x i32>
  %s = shl <{n} x i32> %w, {_splat(n, "i32", "16")}
  %r = bitcast <{n} x i32> %s to <{n} x float>
  ret <{n} x float> %r
}}
define i32 @x_greater_mask(<{n} x float> %a, <{n} x float> %b) {{
  %c = fcmp nnan ogt <{n} x float> %a, %b
  %m = bitcast <{n} x i1> %c to i{n}
  %r = zext i{n} %m to i32
  ret i32 %r
}}
define i32 @x_at_least_mask(<{n} x float> %a, <{n} x float> %b) {{
  %c = fcmp oge <{n} x float> %a, %b
  %m = bitcast <{n} x i1> %c to i{n}
  %r = zext i{n} %m to i32
  ret i32 %r
}}
"""


def _from_f16(n: int, native: bool) -> str:
    """float16 bits -> float32. Without an instruction (a library call an element on plain x86-64) the exponent is
    rebased by
    a multiplication, which is exact for all finite values.
    """
    if native:
        body = f"""
  %h = bitcast <{n} x i16> %a to <{n} x half>
  %r = fpext <{n} x half> %h to <{n} x float>"""
    else:
        body = f"""
  %w = zext <{n} x i16> %a to <{n} x i32>
  %m = and <{n} x i32> %w, {_splat(n, "i32", "32767")}
  %t = shl <{n} x i32> %m, {_splat(n, "i32", "13")}
  %f = bitcast <{n} x i32> %t to <{n} x float>
  %v = fmul <{n} x float> %f, {_splat(n, "float", _float(2.0**112))}
  %s = and <{n} x i32> %w, {_splat(n, "i32", "32768")}
  %g = shl <{n} x i32> %s, {_splat(n, "i32", "16")}
  %b = bitcast <{n} x float> %v to <{n} x i32>
  %o = or <{n} x i32> %b, %g
  %r = bitcast <{n} x i32> %o to <{n} x float>"""
    return f"""
define <{n} x float> @x_from_f16(<{n} x i16> %a) {{{body}
  ret <{n} x float> %r
}}
"""


def _dot2_fma(n: int) -> str:
    """Two fused multiply-adds on the halves of the bfloat16 words."""
    high = _splat(n, "i32", "-65536")
    sixteen = _splat(n, "i32", "16")
    return f"""
define <{n} x float> @x_dot2(<{n} x float> %c, <{n} x i32> %a, <{n} x i32> %b) {{
  %a0 = shl <{n} x i32> %a, {sixteen}
  %a1 = and <{n} x i32> %a, {high}
  %b0 = shl <{n} x i32> %b, {sixteen}
  %b1 = and <{n} x i32> %b, {high}
  %fa0 = bitcast <{n} x i32> %a0 to <{n} x float>
  %fa1 = bitcast <{n} x i32> %a1 to <{n} x float>
  %fb0 = bitcast <{n} x i32> %b0 to <{n} x float>
  %fb1 = bitcast <{n} x i32> %b1 to <{n} x float>
  %p0 = fmul contract <{n} x float> %fa0, %fb0
  %s0 = fadd contract <{n} x float> %p0, %c
  %p1 = fmul contract <{n} x float> %fa1, %fb1
  %r = fadd contract <{n} x float> %p1, %s0
  ret <{n} x float> %r
}}
"""


def _round_bf16(n: int) -> str:
    """Round to nearest even in integer arithmetic: ``fptrunc`` to bfloat is a library call where the CPU has none."""
    return f"""
define <{n} x i32> @x_round_bf16_word(<{n} x float> %a) {{
  %w = bitcast <{n} x float> %a to <{n} x i32>
  %s = lshr <{n} x i32> %w, {_splat(n, "i32", "16")}
  %o = and <{n} x i32> %s, {_splat(n, "i32", "1")}
  %b = add <{n} x i32> %o, {_splat(n, "i32", "32767")}
  %r = add <{n} x i32> %w, %b
  %t = lshr <{n} x i32> %r, {_splat(n, "i32", "16")}
  ret <{n} x i32> %t
}}
define <{n} x i16> @x_to_bf16(<{n} x float> %a) {{
  %w = call <{n} x i32> @x_round_bf16_word(<{n} x float> %a)
  %r = trunc <{n} x i32> %w to <{n} x i16>
  ret <{n} x i16> %r
}}
define <{n} x i32> @x_pack_bf16(<{n} x float> %lo, <{n} x float> %hi) {{
  %l = call <{n} x i16> @x_to_bf16(<{n} x float> %lo)
  %h = call <{n} x i16> @x_to_bf16(<{n} x float> %hi)
  %c = shufflevector <{n} x i16> %l, <{n} x i16> %h, <{2 * n} x i32> <{", ".join(f"i32 {i}" for i in range(2 * n))}>
  %r = bitcast <{2 * n} x i16> %c to <{n} x i32>
  ret <{n} x i32> %r
}}
define <{n} x i32> @x_pair_bf16(<{n} x float> %even, <{n} x float> %odd) {{
  %l = call <{n} x i32> @x_round_bf16_word(<{n} x float> %even)
  %o = call <{n} x i32> @x_round_bf16_word(<{n} x float> %odd)
  %h = shl <{n} x i32> %o, {_splat(n, "i32", "16")}
  %r = or <{n} x i32> %l, %h
  ret <{n} x i32> %r
}}
"""


def _exp2(n: int, name: str, degree: int, scalef: bool) -> str:
    """2**x as 2**round(x) times a polynomial. Without vscalefps x is clamped to [-126, 126] and the exponent is
    added."""
    c = exp2_coefficients(degree)
    lines = [f"define <{n} x float> @{name}(<{n} x float> %x) {{"]
    if scalef:
        lines += [
            "  %v = fadd <16 x float> %x, zeroinitializer",
            "  %n = call <16 x float> @llvm.x86.avx512.mask.rndscale.ps.512(<16 x float> %v, i32 8,"
            " <16 x float> zeroinitializer, i16 -1, i32 4)",
        ]
    else:
        # 1.5 * 2**23: adding it leaves the rounded integer in the low bits
        magic = _splat(n, "float", _float(12582912.0))
        lines += [
            f"  %cl = fcmp ogt <{n} x float> %x, {_splat(n, 'float', _float(-126.0))}",
            f"  %xl = select <{n} x i1> %cl, <{n} x float> %x, <{n} x float> {_splat(n, 'float', _float(-126.0))}",
            f"  %ch = fcmp olt <{n} x float> %xl, {_splat(n, 'float', _float(126.0))}",
            f"  %v = select <{n} x i1> %ch, <{n} x float> %xl, <{n} x float> {_splat(n, 'float', _float(126.0))}",
            f"  %m = fadd <{n} x float> %v, {magic}",
            f"  %n = fsub <{n} x float> %m, {magic}",
        ]
    lines.append(f"  %f = fsub <{n} x float> %v, %n")
    accumulator = _splat(n, "float", _float(c[degree]))
    for i in range(degree - 1, -1, -1):
        lines.append(f"  %p{i} = fmul contract <{n} x float> {accumulator}, %f")
        lines.append(f"  %q{i} = fadd contract <{n} x float> %p{i}, {_splat(n, 'float', _float(c[i]))}")
        accumulator = f"%q{i}"
    if scalef:
        lines.append(
            "  %r = call <16 x float> @llvm.x86.avx512.mask.scalef.ps.512(<16 x float> %q0, <16 x float> %n,"
            " <16 x float> zeroinitializer, i16 -1, i32 4)"
        )
    else:
        lines += [
            f"  %k = fptosi <{n} x float> %n to <{n} x i32>",
            f"  %e = shl <{n} x i32> %k, {_splat(n, 'i32', '23')}",
            f"  %b = bitcast <{n} x float> %q0 to <{n} x i32>",
            f"  %s = add <{n} x i32> %b, %e",
            f"  %r = bitcast <{n} x i32> %s to <{n} x float>",
        ]
    return "\n".join([*lines, f"  ret <{n} x float> %r", "}"]) + "\n"


_AVX512_DECLARATIONS = """
declare <16 x float> @llvm.x86.avx512.mask.scalef.ps.512(<16 x float>, <16 x float>, <16 x float>, i16, i32)
declare <16 x float> @llvm.x86.avx512.mask.rndscale.ps.512(<16 x float>, i32, <16 x float>, i16, i32)
"""

_INTERLEAVED_32 = ", ".join(f"i32 {i // 2 + i % 2 * 16}" for i in range(32))
_AVX512_BF16 = f"""
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float>, <16 x float>)
declare <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float>)
define <16 x float> @x_dot2(<16 x float> %c, <16 x i32> %a, <16 x i32> %b) {{
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %c, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %r
}}
declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <16 x i32>, <16 x i32>)
define <16 x i32> @x_dot4(<16 x i32> %c, <16 x i32> %a, <16 x i32> %b) {{
  %r = call <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32> %c, <16 x i32> %a, <16 x i32> %b)
  ret <16 x i32> %r
}}
define <16 x i32> @x_pack_bf16(<16 x float> %lo, <16 x float> %hi) {{
  %r = call <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float> %hi, <16 x float> %lo)
  %y = bitcast <32 x bfloat> %r to <16 x i32>
  ret <16 x i32> %y
}}
define <16 x i16> @x_to_bf16(<16 x float> %a) {{
  %r = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %a)
  %y = bitcast <16 x bfloat> %r to <16 x i16>
  ret <16 x i16> %y
}}
define <16 x i32> @x_pair_bf16(<16 x float> %even, <16 x float> %odd) {{
  %c = call <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float> %odd, <16 x float> %even)
  %i = bitcast <32 x bfloat> %c to <32 x i16>
  %s = shufflevector <32 x i16> %i, <32 x i16> poison, <32 x i32> <{_INTERLEAVED_32}>
  %r = bitcast <32 x i16> %s to <16 x i32>
  ret <16 x i32> %r
}}
"""


def helper_ir(tier: str, lanes: int) -> str:
    """The LLVM IR text of tier ``avx512_bf16``, ``avx512``, ``avx2`` or ``generic`` with ``lanes`` float32 a vector.

    ``x_*`` becomes ``x<lanes>_*``: a library may hold kernels of two vector widths, and names are global in it.
    """
    avx512 = tier.startswith("avx512")
    parts = [_AVX512_DECLARATIONS if avx512 else "", _common(lanes), _from_f16(lanes, native=tier != "generic")]
    parts.append(_AVX512_BF16 if tier == "avx512_bf16" else _dot2_fma(lanes) + _round_bf16(lanes))
    parts.append(_exp2(lanes, "x_exp2", 6, avx512))
    parts.append(_exp2(lanes, "x_exp2_fast", 3, avx512))
    parts.append(trigonometry_ir(lanes, _splat, _float))
    parts.append(logarithm_ir(lanes, _splat, _float))
    parts.append(memory_ir(lanes))
    parts.append(hadamard_ir(lanes))
    parts.append(avx512_ir() if tier == "avx512_bf16" else "")
    return "".join(parts).replace("@x_", f"@x{lanes}_")
