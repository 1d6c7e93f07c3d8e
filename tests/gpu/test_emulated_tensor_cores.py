"""mma.sync, ldmatrix and wmma stand-ins: matmuls that TVM schedules for tensor cores, against numpy in float64."""

from unittest import mock

import ml_dtypes  # noqa: F401  numpy's bfloat16
import numpy as np
import pytest
import tvm
from gpu import emulated_cuda
from tvm import te
from tvm.s_tir import dlight
from tvm.testing.tir import mma_schedule

# TVM parses each of its intrinsics with a look at the call stack, which searches all loaded modules: a minute in all.
with mock.patch("inspect.getmodule", return_value=None):
    from tvm.s_tir.tensor_intrin import cuda as intrinsics

_M, _N, _K = 64, 64, 64


def _matmul(rows: int | tvm.tirx.Var, dtype: str, b_transposed: bool, batch: tuple[int, ...] = ()) -> tvm.tirx.PrimFunc:
    a = te.placeholder((*batch, rows, _K), dtype, name="A")
    b = te.placeholder((_N, _K) if b_transposed else (_K, _N), dtype, name="B")
    k = te.reduce_axis((0, _K), name="k")

    def product(*at):
        *outer, i, j = at
        b_value = b[j, k] if b_transposed else b[k, j]
        return te.sum(a[*outer, i, k].astype("float32") * b_value.astype("float32"), axis=k)

    return te.create_prim_func([a, b, te.compute((*batch, rows, _N), product, name="C")])


def _check(func: tvm.tirx.PrimFunc, a_shape: tuple[int, ...], dtype: str, b_transposed: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(a_shape).astype(dtype), rng.standard_normal((_K, _N)).astype(dtype)
    c = np.empty((*a_shape[:-1], _N), "float32")
    emulated_cuda.compile(func)(a, np.ascontiguousarray(b.T) if b_transposed else b, c)
    np.testing.assert_allclose(c, a.astype("float64") @ b.astype("float64"), atol=1e-4)


@pytest.mark.parametrize("b_transposed", [False, True])
def test_ldmatrix_and_mma_sync(b_transposed):
    # The layouts of registers are TVM's, of schedules that its own tests run on GPUs.
    suffix = "_TRANS_B_INTRIN" if b_transposed else "_INTRIN"
    load_b = "LDMATRIX_f16_B_TRANS_INTRIN" if b_transposed else "LDMATRIX_f16_B_INTRIN"

    def layout(i, j):
        return (i // 16, j // 16, *intrinsics.shared_16x16_to_ldmatrix_32x8_layout(i % 16, j % 16))

    schedule = mma_schedule(
        _matmul(_M, "float16", b_transposed),
        16,
        "float16",
        b_transposed,
        [1, 1, 2, 1, 2],
        [1, 1, 2, 1, 2],
        [_K // 32, 2, 1],
        layout,
        layout,
        layout,
        intrinsics.LDMATRIX_f16_A_INTRIN,
        getattr(intrinsics, load_b),
        getattr(intrinsics, f"MMA_f16f16f32{suffix}"),
        intrinsics.MMA_fill_16x16_f32_INTRIN,
        intrinsics.MMA_store_16x16_f32_global_INTRIN,
    )
    _check(schedule.mod["main"], (_M, _K), "float16", b_transposed)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_matmul_of_dlight(dtype):
    # float16 with wmma; the others, plain loops with padding, stand for the arithmetic of their types.
    func = _matmul(tvm.tirx.Var("m", "int32"), dtype, True, (1,))
    with emulated_cuda.target():
        func = dlight.ApplyDefaultSchedule(dlight.gpu.Matmul())(tvm.IRModule({"main": func}))["main"]
    _check(func, (1, 70, _K), dtype, True)
