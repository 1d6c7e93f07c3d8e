"""RMSNorm of every q head and every k head of a fused qkv, each kind with its own weight (Qwen3)."""

from tvm import tirx
from tvm.script import tirx as T

from .isa import VectorISA

_MIN_PARALLEL_ELEMENTS = 32768  # a parallel region costs about as long


def qk_norm(
    num_attention_heads: int, num_key_value_heads: int, head_dim: int, eps: float, dtype: str, isa: VectorISA
) -> tirx.PrimFunc:
    """(qkv [n, H + 2G, head_dim], q_weight [head_dim], k_weight [head_dim]) -> the same shape, all of ``dtype``.

    The first H heads are normalised with q_weight, the next G with k_weight, the last G (v) copied. Rounding as in
    :func:`tir_kernels.cpu.rms_norm.rms_norm`.
    """
    lanes = isa.lanes
    k_end = num_attention_heads + num_key_value_heads
    heads = k_end + num_key_value_heads
    vectors = head_dim // lanes
    full = vectors * lanes

    @T.prim_func(s_tir=True)
    def qk_norm(
        qkv: T.handle, q_weight: T.Buffer((head_dim,), dtype), k_weight: T.Buffer((head_dim,), dtype), out: T.handle
    ):
        T.func_attr({"global_symbol": "qk_norm", "tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int64()
        X = T.match_buffer(qkv, (n, heads, head_dim), dtype)
        Y = T.match_buffer(out, (n, heads, head_dim), dtype)

        @T.inline
        def normalise(row, head, weight):
            with T.sblock("head"):
                T.reads()
                T.writes()
                total = T.sblock_alloc_buffer((lanes,), "float32")
                scale = T.sblock_alloc_buffer((1,), "float32")
                isa.store(total, isa.zero(), 0)
                for v in T.unroll(vectors):
                    value: T.let = isa.load(X, row, head, v * lanes)
                    isa.store(total, isa.load(total, 0) + value * value, 0)
                if head_dim > full:
                    tail: T.let = isa.load(X, row, head, full, mask=isa.tail_mask(full, head_dim))
                    isa.store(total, isa.load(total, 0) + tail * tail, 0)
                scale[0] = T.float32(1) / T.sqrt(isa.hsum(isa.load(total, 0)) / T.float32(head_dim) + T.float32(eps))
                for v in T.unroll(vectors):
                    value: T.let = isa.round_to(isa.load(X, row, head, v * lanes) * isa.splat(scale[0]), dtype)
                    isa.store(Y, isa.load(weight, v * lanes) * value, row, head, v * lanes)
                if head_dim > full:
                    mask: T.let = isa.tail_mask(full, head_dim)
                    last: T.let = isa.round_to(isa.load(X, row, head, full, mask=mask) * isa.splat(scale[0]), dtype)
                    isa.store(Y, isa.load(weight, full, mask=mask) * last, row, head, full, mask=mask)

        @T.inline
        def token(row):
            for h in T.serial(num_attention_heads):
                normalise(row, h, q_weight)
            for h in T.serial(num_key_value_heads):
                normalise(row, num_attention_heads + h, k_weight)
            for h in T.serial(num_key_value_heads):
                for c in T.vectorized(head_dim):
                    Y[row, k_end + h, c] = X[row, k_end + h, c]

        with T.sblock("root"):
            T.reads()
            T.writes()
            with isa.helpers():
                if n * (heads * head_dim) < _MIN_PARALLEL_ELEMENTS:
                    for i in T.serial(n):
                        token(i)
                else:
                    for i in T.parallel(n):
                        token(i)

    return qk_norm
