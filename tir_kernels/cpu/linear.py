"""Linear layers over packed weights: y = x @ W.T (+ bias) (+ residual), and both input projections of a SwiGLU MLP.

Sums are float32 and rounded once. One kernel serves every number of rows: up to eight read the weight once, as in a
matrix-vector product, and 4-bit weights are exact. With more rows than a few tiles, 4-bit weights and activations are
rounded to 8-bit integers (module int8) if the CPU multiplies those, else the scaled weights to bfloat16 (relative error
at most 2**-8 a weight); both errors are far below that of the 4 bits.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import prim_func

from tir_kernels.weight_format import FORMATS, PANEL_ROWS

from .isa import VectorISA
from .product import Product


def linear(
    n: int,
    k: int,
    format_name: str,
    dtype: str,
    isa: VectorISA,
    *,
    bias: bool = False,
    residual: bool = False,
    out_dtype: str | None = None,
    m: int | None = None,
) -> tirx.PrimFunc:
    """(x [m, k], w packed [n, k], [bias [n]], [residual [m, n]], out [m, n]): out = x @ w.T + bias + residual.

    Parameters
    ----------
    n, k : output and input features.
    format_name : a key of tir_kernels.weight_format.FORMATS, "f32_n32" with float32 and the others with bfloat16.
    dtype : "bfloat16" or "float32", of x, bias and residual.
    isa : vector tier.
    bias, residual : whether the function has these parameters.
    out_dtype : of out; dtype if None.
    m : the number of rows if it is fixed; None makes it a variable.
    """
    _check_format(format_name, dtype)
    with _function("linear") as builder:
        x_arg, w_arg = (T.arg(name, T.handle()) for name in ("x", "w"))
        bias_arg = T.arg("bias", T.handle()) if bias else None
        residual_arg = T.arg("residual", T.handle()) if residual else None
        out_arg = T.arg("out", T.handle())
        rows = T.int64() if m is None else m
        x = T.match_buffer(x_arg, (rows, k), dtype)
        w = _match_weight(w_arg, format_name, n, k)
        bias_buffer = T.match_buffer(bias_arg, (n,), dtype) if bias else None
        residual_buffer = T.match_buffer(residual_arg, (rows, n), dtype) if residual else None
        out = T.match_buffer(out_arg, (rows, n), out_dtype or dtype)

        def store(row, column, value, mask=None) -> None:
            if bias:
                value = value + isa.load(bias_buffer, column, mask=mask)
            if residual:
                value = value + isa.load(residual_buffer, row, column, mask=mask)
            isa.store(out, value, row, column, mask=mask)

        def finish(row, panel, first: int, sums: list) -> None:
            column = panel * PANEL_ROWS + first
            if n % PANEL_ROWS == 0:
                store(row, column, sums[0])
                return
            with T.If(column + isa.lanes <= n):
                with T.Then():
                    store(row, column, sums[0])
                with T.Else():
                    with T.If(column < n):
                        with T.Then():
                            store(row, column, sums[0], isa.tail_mask(column, n))

        with _body(isa):
            Product(isa, format_name, dtype, rows, k, -(-n // PANEL_ROWS), 1, x, w, finish).emit()
    return builder.get()


def swiglu(
    intermediate_size: int, k: int, format_name: str, dtype: str, isa: VectorISA, m: int | None = None
) -> tirx.PrimFunc:
    """(x [m, k], w packed [2 * intermediate_size, k], out [m, intermediate_size]): out = silu(x @ gate.T) * (x @ up.T).

    gate is the first half of the rows of w; intermediate_size is a multiple of 32. The other parameters are those of
    :func:`linear`. A task takes a panel of gate and the one of up, so that the 2 * intermediate_size sums a row never
    reach memory.
    """
    _check_format(format_name, dtype)
    if intermediate_size % PANEL_ROWS:
        raise ValueError(f"intermediate_size {intermediate_size} is not a multiple of {PANEL_ROWS}")
    with _function("swiglu") as builder:
        x_arg, w_arg, out_arg = (T.arg(name, T.handle()) for name in ("x", "w", "out"))
        rows = T.int64() if m is None else m
        x = T.match_buffer(x_arg, (rows, k), dtype)
        w = _match_weight(w_arg, format_name, 2 * intermediate_size, k)
        out = T.match_buffer(out_arg, (rows, intermediate_size), dtype)

        def finish(row, panel, first: int, sums: list) -> None:
            gate, up = (T.Bind(s) for s in sums)
            value = gate * isa.sigmoid(gate, fast=dtype == "bfloat16") * up
            isa.store(out, value, row, panel * PANEL_ROWS + first)

        with _body(isa):
            Product(isa, format_name, dtype, rows, k, intermediate_size // PANEL_ROWS, 2, x, w, finish).emit()
    return builder.get()


def _check_format(format_name: str, dtype: str) -> None:
    if (format_name == "f32_n32") != (dtype == "float32"):
        raise ValueError(f"weight format {format_name} does not go with dtype {dtype}")


@contextmanager
def _function(name: str) -> Iterator[IRBuilder]:
    with IRBuilder() as builder:
        with prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True, "tirx.is_scheduled": True})
            yield builder


def _match_weight(argument, format_name: str, n: int, k: int) -> T.Buffer:
    weight_format = FORMATS[format_name]
    return T.match_buffer(argument, weight_format.packed_shape(n, k), weight_format.packed_dtype)


@contextmanager
def _body(isa: VectorISA) -> Iterator[None]:
    with T.sblock("root"):
        T.reads()
        T.writes()
        with isa.helpers():
            yield
