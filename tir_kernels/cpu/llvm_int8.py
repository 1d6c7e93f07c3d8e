"""LLVM IR of helpers for 8-bit keys and values."""

from collections.abc import Callable


def hadamard_ir(n: int) -> str:
    """``x_hadamard``: n elements times the n x n Hadamard matrix (Sylvester's, entries +-1)."""
    lines = [f"define <{n} x float> @x_hadamard(<{n} x float> %v0) {{"]
    stage, distance = 0, 1
    while distance < n:
        partners = ", ".join(f"i32 {i ^ distance}" for i in range(n))
        signs = ", ".join(f"float {'-1.0' if i & distance else '1.0'}" for i in range(n))
        lines += [
            f"  %s{stage} = shufflevector <{n} x float> %v{stage}, <{n} x float> poison, <{n} x i32> <{partners}>",
            f"  %p{stage} = fmul contract <{n} x float> %v{stage}, <{signs}>",
            f"  %v{stage + 1} = fadd contract <{n} x float> %p{stage}, %s{stage}",
        ]
        stage, distance = stage + 1, 2 * distance
    return "\n".join([*lines, f"  ret <{n} x float> %v{stage}", "}"]) + "\n"


def avx512_ir() -> str:
    """``x_pack_u8`` of four int32 vectors to bytes, and ``x_row_maxima`` of four float32 vectors."""
    return _PACK + _row_maxima()


_PACK = """
declare <32 x i16> @llvm.x86.avx512.packusdw.512(<16 x i32>, <16 x i32>)
declare <64 x i8> @llvm.x86.avx512.packuswb.512(<32 x i16>, <32 x i16>)
define <16 x i32> @x_pack_u8(<16 x i32> %a, <16 x i32> %b, <16 x i32> %c, <16 x i32> %d) {
  %l = call <32 x i16> @llvm.x86.avx512.packusdw.512(<16 x i32> %a, <16 x i32> %b)
  %h = call <32 x i16> @llvm.x86.avx512.packusdw.512(<16 x i32> %c, <16 x i32> %d)
  %p = call <64 x i8> @llvm.x86.avx512.packuswb.512(<32 x i16> %l, <32 x i16> %h)
  %r = bitcast <64 x i8> %p to <16 x i32>
  ret <16 x i32> %r
}
"""


def _row_maxima() -> str:
    """Three steps that halve the elements a row while they double the rows a vector, then two within its quarters."""
    lines = ["define <16 x float> @x_row_maxima(" + ", ".join(f"<16 x float> %{row}" for row in "abcd") + ") {"]

    def step(name: str, first: str, second: str, places: Callable[[int], int]) -> None:
        """name = max of the picked elements of (first, second) and of those ``width`` after them."""
        for side in range(2):
            mask = ", ".join(f"i32 {places(i, side)}" for i in range(16))
            lines.append(
                f"  %{name}{side} = shufflevector <16 x float> %{first}, <16 x float> %{second}, <16 x i32> <{mask}>"
            )
        lines.append(f"  %{name} = call <16 x float> @x_vmax(<16 x float> %{name}0, <16 x float> %{name}1)")

    step("ab", "a", "b", lambda i, side: i // 8 * 16 + i % 8 + 8 * side)
    step("cd", "c", "d", lambda i, side: i // 8 * 16 + i % 8 + 8 * side)
    step("q", "ab", "cd", lambda i, side: i // 4 * 8 + i % 4 + 4 * side)
    step("t", "q", "q", lambda i, side: i ^ 2 * side)
    step("u", "t", "t", lambda i, side: i ^ side)
    firsts = ", ".join(f"i32 {i % 4 * 4}" for i in range(16))
    lines.append(f"  %r = shufflevector <16 x float> %u, <16 x float> poison, <16 x i32> <{firsts}>")
    return "\n".join([*lines, "  ret <16 x float> %r", "}"]) + "\n"
