"""Linear layers over weights in MLC's layouts: y = x @ W.T (+ bias) (+ residual).

A tensor expression, which passes/schedule_gpu.py gives its schedule; where the target has matrix units for the dtype,
with a form of its own for many rows.
"""

from tvm import te, tirx

from .features import GPUFeatures
from .linear_many_rows import has_matrix_units
from .matrix import Matrix

MATRIX_UNITS = "matrix_units"  # attribute of a function that linear_many_rows computes as well


def linear(
    n: int,
    k: int,
    format_name: str,
    dtype: str,
    gpu: GPUFeatures,
    *,
    bias: bool = False,
    residual: bool = False,
    out_dtype: str | None = None,
    m: int | None = None,
) -> tirx.PrimFunc:
    """(x [m, k], tensors of w [n, k], [bias [n]], [residual [m, n]], out [m, n]): out = x @ w.T + bias + residual.

    Parameters
    ----------
    n, k : output and input features.
    format_name : "plain" or "q4" (tir_kernels/mlc_weights.py).
    dtype : "float16", "bfloat16" or "float32", of x, scales, bias and residual; sums are float32 and rounded once. With
        one row 4-bit weights are exact, else rounded to dtype.
    bias, residual : whether the function has these parameters.
    out_dtype : of out; dtype if None.
    m : the number of rows if it is fixed; None makes it a variable. With matrix units the function then has the
        attribute :data:`MATRIX_UNITS`, the arguments of :func:`tir_kernels.gpu.linear_many_rows.linear_many_rows`
        besides ``gpu``.
    """
    out_dtype = out_dtype or dtype
    rows = tirx.Var("m", "int64") if m is None else m
    x = te.placeholder((rows, k), dtype, "x")
    matrix = Matrix(n, k, format_name, dtype)
    r = te.reduce_axis((0, k), "r")
    if m == 1:

        def weight(j):
            return matrix.float32(j, r)
    else:
        w = matrix.rounded()

        def weight(j):
            return w[j, r].astype("float32")

    sums = te.compute((rows, n), lambda i, j: te.sum(x[i, r].astype("float32") * weight(j), axis=r), name="matmul")
    bias_tensor = te.placeholder((n,), dtype, "bias") if bias else None
    residual_tensor = te.placeholder((rows, n), dtype, "residual") if residual else None

    def finished(i, j):
        value = sums[i, j]
        if bias:
            value = value + bias_tensor[j].astype("float32")
        if residual:
            value = value + residual_tensor[i, j].astype("float32")
        return value.astype(out_dtype)

    # Even where nothing is left to do: what the threads of a matrix-vector product have summed together, TVM stores
    # without asking whether the row is there, while it does ask in the stage after it.
    out = te.compute((rows, n), finished, name="out")
    extra = [tensor for tensor in (bias_tensor, residual_tensor) if tensor is not None]
    func = te.create_prim_func([x, *matrix.tensors, *extra, out], index_dtype_override="int64")
    if m is not None or not has_matrix_units(k, dtype, gpu):
        return func
    shape = {"n": n, "k": k, "format_name": format_name, "dtype": dtype, "out_dtype": out_dtype}
    return func.with_attr(MATRIX_UNITS, shape | {"bias": bias, "residual": residual})
