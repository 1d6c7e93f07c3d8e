"""Embedding lookup in the packed table that the output layer multiplies with: tied embeddings share one copy."""

from tvm import tirx
from tvm.script import tirx as T

from tir_kernels.weight_format import FORMATS, GROUP, PANEL_ROWS

from .isa import VectorISA
from .q4 import Q4Weight
from .scratch import stack_buffer

_MIN_PARALLEL_TOKENS = 8  # fewer do not pay for a parallel region


def embedding(vocab_size: int, hidden_size: int, format_name: str, dtype: str, isa: VectorISA) -> tirx.PrimFunc:
    """(w packed [vocab_size, hidden_size], ids int32 [n], out [n, hidden_size]): out = the rows ``ids`` of w.

    Parameters
    ----------
    vocab_size, hidden_size : of the table; ids lie in 0 .. vocab_size - 1.
    format_name : a key of tir_kernels.weight_format.FORMATS, "f32_n32" with float32 and the others with bfloat16.
    dtype : "bfloat16" or "float32", of out; 4-bit weights are rounded to it.
    isa : vector tier.
    """
    weight_format = FORMATS[format_name]
    packed_shape = weight_format.packed_shape(vocab_size, hidden_size)

    def copy_row(w: T.Buffer, y: T.Buffer, token, row) -> None:
        panel, lane = T.Bind(row // PANEL_ROWS), T.Bind(row % PANEL_ROWS)
        if format_name == "q4_n32g32":
            _unpack_row(Q4Weight(isa, w), y, token, panel, lane)
            return
        pair = FORMATS[format_name].k_multiple
        with T.serial(hidden_size // pair) as word:
            for e in range(pair):
                element = w[panel, word, lane, e] if pair > 1 else w[panel, word, lane]
                T.buffer_store(y, element, [token, word * pair + e])

    @T.prim_func(s_tir=True)
    def embedding(weight: T.handle, token_ids: T.handle, out: T.handle):
        T.func_attr({"global_symbol": "embedding", "tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int64()
        w = T.match_buffer(weight, packed_shape, weight_format.packed_dtype)
        ids = T.match_buffer(token_ids, (n,), "int32")
        y = T.match_buffer(out, (n, hidden_size), dtype)
        with T.sblock("root"):
            T.reads()
            T.writes()
            with isa.helpers():
                if n < _MIN_PARALLEL_TOKENS:
                    for token in T.serial(n):
                        copy_row(w, y, token, ids[token])
                else:
                    for token in T.parallel(n):
                        copy_row(w, y, token, ids[token])

    return embedding


def _unpack_row(weight: Q4Weight, y: T.Buffer, token, panel, lane) -> None:
    isa = weight.isa
    values = stack_buffer(GROUP)
    with T.serial(weight.num_groups) as group:
        scale, minimum = (T.Bind(isa.splat(value(panel, group, lane))) for value in (weight.scale, weight.minimum))
        for k in range(GROUP):
            nibbles = weight.packed[panel, group, k // 8 * PANEL_ROWS + lane]
            q = T.bitwise_and(T.shift_right(nibbles, k % 2 * 16 + k % 8 // 2 * 4), 15)
            T.buffer_store(values, T.cast(q, "float32"), [k])
        for first in range(0, GROUP, isa.lanes):
            isa.store(y, values[isa.ramp(first)] * scale + minimum, token, group * GROUP + first)
