"""cos and sin of RoPE for the new tokens of one step."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .isa import VectorISA
from .vector_ranges import isa_for_width, vector_starts

_MIN_PARALLEL_ELEMENTS = 4096  # of the table; a parallel region costs about as long


def rope_table(rotary_dim: int, isa: VectorISA, attention_scaling: float = 1.0) -> PrimFunc:
    """positions int32 [n], inv_freq float32 [rotary_dim / 2] -> float32 [n, rotary_dim], cos before sin.

    The angle is the float32 product of position and frequency, as in Hugging Face transformers; its cos and sin are
    within 1e-6 for angles of up to 1e7 radians and are multiplied by ``attention_scaling`` (YaRN and LongRoPE).
    """
    half = rotary_dim // 2
    isa = isa_for_width(isa, half)
    starts = vector_starts(isa, half)
    scaling = float(attention_scaling)

    @T.prim_func(s_tir=True)
    def rope_table(positions_handle: T.handle, inv_freq_handle: T.handle, table_handle: T.handle):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int64()
        positions = T.match_buffer(positions_handle, (n,), "int32")
        inv_freq = T.match_buffer(inv_freq_handle, (half,), "float32")
        table = T.match_buffer(table_handle, (n, rotary_dim), "float32")

        @T.inline
        def compute_row(i):
            with T.sblock("row"):
                T.reads()
                T.writes()
                angle = T.sblock_alloc_buffer((isa.lanes,), "float32")
                position: T.let = T.cast(positions[i], "float32")
                for v in T.unroll(starts.count):
                    angle[isa.ramp(0)] = isa.splat(position) * inv_freq[isa.ramp(starts[v])]
                    table[i, isa.ramp(starts[v])] = isa.cos(angle[isa.ramp(0)]) * isa.splat(T.float32(scaling))
                    table[i, isa.ramp(half + starts[v])] = isa.sin(angle[isa.ramp(0)]) * isa.splat(T.float32(scaling))

        with T.sblock("root"):
            T.reads()
            T.writes()
            with isa.helpers():
                if n * rotary_dim < _MIN_PARALLEL_ELEMENTS:
                    for i in T.serial(n):
                        compute_row(i)
                else:
                    for i in T.parallel(n):
                        compute_row(i)

    return rope_table
