"""RMSNorm of the q and k heads of a fused qkv tensor."""

from tvm import tirx
from tvm.script import tirx as T

from .features import GPUFeatures
from .thread_block import num_threads, thread_block


def qk_norm(
    num_attention_heads: int, num_key_value_heads: int, head_dim: int, eps: float, dtype: str, gpu: GPUFeatures
) -> tirx.PrimFunc:
    """(qkv [n, H + 2G, head_dim], q_weight [head_dim], k_weight [head_dim]) -> the same shape, all of ``dtype``.

    The first H heads are normalised with q_weight, the next G with k_weight, the last G (v) copied. Rounding as in
    :func:`tir_kernels.gpu.rms_norm.rms_norm`. A block owns a head of a token.
    """
    threads = num_threads(gpu, 128)
    block = thread_block(threads)
    steps = -(-head_dim // threads)
    k_end = num_attention_heads + num_key_value_heads
    heads = k_end + num_key_value_heads

    @T.prim_func(s_tir=True)
    def qk_norm(
        qkv: T.handle, q_weight: T.Buffer((head_dim,), dtype), k_weight: T.Buffer((head_dim,), dtype), out: T.handle
    ):
        T.func_attr({"global_symbol": "qk_norm", "tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int64()
        X = T.match_buffer(qkv, (n, heads, head_dim), dtype)
        Y = T.match_buffer(out, (n, heads, head_dim), dtype)

        @T.inline
        def normalise(token, head, thread):
            shared = T.meta_var(block.scratch(1, "float32"))
            total = T.alloc_buffer((1,), "float32", scope="local")
            total[0] = T.float32(0)
            for i in T.serial(steps):
                if i * threads + thread < head_dim:
                    value: T.let = T.cast(X[token, head, i * threads + thread], "float32")
                    total[0] = total[0] + value * value
            block.combine(shared, thread, total, lambda a, b: a + b)
            total[0] = T.rsqrt(total[0] / T.float32(head_dim) + T.float32(eps))
            for i in T.serial(steps):
                if i * threads + thread < head_dim:
                    column: T.let = i * threads + thread
                    if head < k_end:
                        rounded: T.let = T.cast(T.cast(X[token, head, column], "float32") * total[0], dtype)
                        weight: T.let = T.if_then_else(head < num_attention_heads, q_weight[column], k_weight[column])
                        scaled: T.let = T.cast(rounded, "float32") * T.cast(weight, "float32")
                        Y[token, head, column] = T.cast(scaled, dtype)
                    else:
                        Y[token, head, column] = X[token, head, column]

        with T.sblock("root"):
            T.reads()
            T.writes()
            for place in T.thread_binding(n * heads, thread="blockIdx.x"):
                for thread in T.thread_binding(threads, thread="threadIdx.x"):
                    with T.sblock("head"):
                        T.reads()
                        T.writes()
                        normalise(place // heads, place % heads, thread)

    return qk_norm
