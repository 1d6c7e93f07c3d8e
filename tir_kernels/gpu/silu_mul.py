"""The gate of a SwiGLU MLP: silu(gate) * up."""

from tvm import te, tirx

from .features import GPUFeatures


def silu_mul(intermediate_size: int, dtype: str, gpu: GPUFeatures) -> tirx.PrimFunc:
    """(gate_up [n, 2 * intermediate_size]) -> silu(gate) * up [n, intermediate_size]; gate is the first half of a row.

    Computed in float32 and rounded once to ``dtype``.
    """
    n = tirx.Var("n", "int64")
    gate_up = te.placeholder((n, 2 * intermediate_size), dtype, "gate_up")

    def activated(i, j):
        gate, up = (gate_up[i, column].astype("float32") for column in (j, j + intermediate_size))
        return (gate / (1.0 + te.exp(-gate)) * up).astype(dtype)

    return te.create_prim_func(
        [gate_up, te.compute((n, intermediate_size), activated, name="silu_mul")], index_dtype_override="int64"
    )
