"""cos and sin of RoPE for the new tokens of one step."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .features import GPUFeatures
from .trigonometry import cos_sin

_THREADS = 128


def rope_table(rotary_dim: int, gpu: GPUFeatures, attention_scaling: float = 1.0) -> PrimFunc:
    """positions int32 [n], inv_freq float32 [rotary_dim / 2] -> float32 [n, rotary_dim], cos before sin.

    As :func:`tir_kernels.cpu.rope_table.rope_table`; a thread computes one angle.
    """
    half = rotary_dim // 2
    scaling = float(attention_scaling)

    @T.prim_func(s_tir=True)
    def rope_table(positions_handle: T.handle, inv_freq_handle: T.handle, table_handle: T.handle):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int64()
        positions = T.match_buffer(positions_handle, (n,), "int32")
        inv_freq = T.match_buffer(inv_freq_handle, (half,), "float32")
        table = T.match_buffer(table_handle, (n, rotary_dim), "float32")

        @T.inline
        def compute(i, j):
            cos, sin = T.meta_var(cos_sin(T.cast(positions[i], "float32") * inv_freq[j]))
            table[i, j] = cos * T.float32(scaling)
            table[i, half + j] = sin * T.float32(scaling)

        with T.sblock("root"):
            T.reads()
            T.writes()
            for block in T.thread_binding(T.ceildiv(n * half, _THREADS), thread="blockIdx.x"):
                for thread in T.thread_binding(_THREADS, thread="threadIdx.x"):
                    with T.sblock("angle"):
                        T.reads()
                        T.writes()
                        if block * _THREADS + thread < n * half:
                            compute((block * _THREADS + thread) // half, (block * _THREADS + thread) % half)

    return rope_table
