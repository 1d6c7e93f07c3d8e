"""The gate of a SwiGLU MLP: silu(gate) * up."""

from tvm import tirx
from tvm.script import tirx as T

from .isa import VectorISA

# A parallel region costs about as long as this many outputs, and a thread should get as many.
_MIN_PARALLEL_ELEMENTS = 16384
_PART = 2048  # outputs of one task; a row is split, so that a single row uses every thread


def silu_mul(intermediate_size: int, dtype: str, isa: VectorISA) -> tirx.PrimFunc:
    """(gate_up [n, 2 * intermediate_size]) -> silu(gate) * up [n, intermediate_size]; gate is the first half of a row.

    Computed in float32 and rounded once to ``dtype``.
    """
    lanes = isa.lanes
    vectors = intermediate_size // lanes
    full = vectors * lanes
    parts = max(1, intermediate_size // _PART)
    fast = dtype == "bfloat16"

    @T.prim_func(s_tir=True)
    def silu_mul(gate_up: T.handle, out: T.handle):
        T.func_attr({"global_symbol": "silu_mul", "tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int64()
        X = T.match_buffer(gate_up, (n, 2 * intermediate_size), dtype)
        Y = T.match_buffer(out, (n, intermediate_size), dtype)

        @T.inline
        def part(task):
            with T.sblock("part"):
                T.reads()
                T.writes()
                row: T.let = task // parts
                first: T.let = task % parts * vectors // parts
                end: T.let = (task % parts + 1) * vectors // parts
                for v in T.serial(end - first):
                    gate: T.let = isa.load(X, row, (first + v) * lanes)
                    up: T.let = isa.load(X, row, intermediate_size + (first + v) * lanes)
                    isa.store(Y, gate * isa.sigmoid(gate, fast) * up, row, (first + v) * lanes)
                if intermediate_size > full:
                    if end == vectors:
                        mask: T.let = isa.tail_mask(full, intermediate_size)
                        last_gate: T.let = isa.load(X, row, full, mask=mask)
                        last_up: T.let = isa.load(X, row, intermediate_size + full, mask=mask)
                        isa.store(Y, last_gate * isa.sigmoid(last_gate, fast) * last_up, row, full, mask=mask)

        with T.sblock("root"):
            T.reads()
            T.writes()
            with isa.helpers():
                if n * intermediate_size < _MIN_PARALLEL_ELEMENTS:
                    for task in T.serial(n * parts):
                        part(task)
                else:
                    for task in T.parallel(n * parts):
                        part(task)

    return silu_mul
