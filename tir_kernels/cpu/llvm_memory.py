"""LLVM IR of helpers that take addresses: a register transpose of 32-bit words and a prefetch."""


def memory_ir(n: int) -> str:
    """``x_transpose`` of n x n words (n a power of two) and ``x_prefetch``."""
    return _prefetch() + _transpose(n)


def _prefetch() -> str:
    return """
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define i32 @x_prefetch(ptr %p) {
  call void @llvm.prefetch.p0(ptr %p, i32 0, i32 2, i32 1)
  ret i32 0
}
"""


def _transpose(n: int) -> str:
    """log2(n) stages; stage s exchanges the s x s squares beside the diagonal of each 2s x 2s square."""
    lines = ["define i32 @x_transpose(ptr %dst, i64 %dst_stride, ptr %src, i64 %src_stride) {"]
    for i in range(n):
        lines += [
            f"  %so{i} = mul i64 %src_stride, {i}",
            f"  %sp{i} = getelementptr i32, ptr %src, i64 %so{i}",
            f"  %r0_{i} = load <{n} x i32>, ptr %sp{i}, align 4",
        ]
    stage, distance = 0, n // 2
    while distance:
        for i in (i for i in range(n) if not i & distance):
            rows = f"<{n} x i32> %r{stage}_{i}, <{n} x i32> %r{stage}_{i | distance}"
            lower = [x if not x & distance else n + (x ^ distance) for x in range(n)]
            upper = [x | distance if not x & distance else n + x for x in range(n)]
            for row, picked in ((i, lower), (i | distance, upper)):
                mask = ", ".join(f"i32 {x}" for x in picked)
                lines.append(f"  %r{stage + 1}_{row} = shufflevector {rows}, <{n} x i32> <{mask}>")
        stage, distance = stage + 1, distance // 2
    for i in range(n):
        lines += [
            f"  %do{i} = mul i64 %dst_stride, {i}",
            f"  %dp{i} = getelementptr i32, ptr %dst, i64 %do{i}",
            f"  store <{n} x i32> %r{stage}_{i}, ptr %dp{i}, align 4",
        ]
    return "\n".join([*lines, "  ret i32 0", "}"]) + "\n"
