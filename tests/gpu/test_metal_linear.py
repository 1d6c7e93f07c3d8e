"""Linear layers as Metal source on the CPU (metal_shim), against numpy: those of simdgroup matrices, and the others."""

import numpy as np
import pytest
import tvm
from gpu import emulated_cuda, metal_shim, metal_to_cpp
from gpu.edited_source import edit_metal_source
from test_mlc_weights import dequantized, stored

from passes.schedule_gpu import ScheduleGPU
from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.linear import linear
from tir_kernels.gpu.linear_many_rows import linear_many_rows

_GPU = gpu_features(metal_shim.TARGET)
_MAX_THREADGROUP_BYTES = 32768
_THREADGROUP_BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
_SIMDGROUP_BARRIER = "simdgroup_barrier(mem_flags::mem_threadgroup);"
_QUANTIZATIONS = {"float16": "q4f16_1", "float32": "q4f32_1"}


def _case(rng, n: int, k: int, format_name: str, dtype: str) -> tuple[list[np.ndarray], np.ndarray]:
    """(tensors of a weight, the float64 [n, k] that they stand for)."""
    weight = rng.standard_normal((n, k)).astype(dtype)
    if format_name == "plain":
        return [weight], weight.astype(np.float64)
    tensors = stored(weight.astype(np.float32), _QUANTIZATIONS[dtype])
    return tensors, dequantized(*tensors, k)


def _check(out, x, weight, added, rounded_weights: bool) -> None:
    expected = x.astype(np.float64) @ weight.T + added
    size = np.abs(x.astype(np.float64)) @ np.abs(weight).T + np.abs(added)
    # Weights of 16 bits are rounded; sums to float32 for each product and addition, and to the output's dtype.
    bound = ((2.0**-11 if rounded_weights else 0) + (x.shape[1] + 2) * 2.0**-24) * size
    bound += (2.0**-11 if out.dtype == np.float16 else 2.0**-24) * np.abs(expected)
    assert np.all(np.abs(out.astype(np.float64) - expected) <= bound)


@pytest.mark.parametrize(("format_name", "dtype", "fixed"), [("q4", "float16", None), ("q4", "float32", 1)])
def test_linear(format_name, dtype, fixed):
    """All forms of a layer, the one for the number of rows chosen at run time."""
    n, k = 37, 96
    func = linear(n, k, format_name, dtype, _GPU, m=fixed, bias=True, out_dtype="float32")
    # Unchecked: TVM's schedules of matrix-vector products shuffle without a barrier.
    kernel = metal_shim.compile(ScheduleGPU(metal_shim.TARGET)(tvm.IRModule({"main": func}))["main"], checked=False)
    rng = np.random.default_rng(0)
    tensors, weight = _case(rng, n, k, format_name, dtype)
    for order, rows in enumerate((fixed,) if fixed else (1, 2, 5, 11)):
        x, bias = rng.standard_normal((rows, k)).astype(dtype), rng.standard_normal(n).astype(dtype)
        out = np.full((rows, n), np.nan, np.float32)
        with emulated_cuda.thread_order(order):
            kernel(x, *tensors, bias, out)
        _check(out, x, weight, bias.astype(np.float64), dtype == "float16")


@pytest.mark.parametrize(
    ("n", "k", "format_name", "extra", "rows"),
    [
        (37, 96, "q4", "bias", (11, 64, 70)),
        (140, 64, "q4", "residual", (9, 130, 1)),
        (4, 32, "q4", "", (9, 3, 65)),
        (72, 160, "plain", "residual", (40, 65, 33)),
        (31, 64, "plain", "bias", (20, 12, 7)),
    ],
)
def test_simdgroup_matrices(n, k, format_name, extra, rows):
    arguments = {"bias": extra == "bias", "residual": extra == "residual"}
    out_dtype = "float16" if extra else "float32"
    kernel = metal_shim.compile(linear_many_rows(n, k, format_name, "float16", _GPU, **arguments, out_dtype=out_dtype))
    rng = np.random.default_rng(n)
    tensors, weight = _case(rng, n, k, format_name, "float16")
    for order, m in zip(("forward", "backward", 7), rows):
        x = rng.standard_normal((m, k)).astype(np.float16)
        shape = {"bias": (n,), "residual": (m, n)}.get(extra)
        added = [] if shape is None else [rng.standard_normal(shape).astype(np.float16)]
        out = np.full((m, n), np.nan, out_dtype)
        with emulated_cuda.thread_order(order):
            kernel(x, *tensors, *added, out)
        _check(out, x, weight, sum(value.astype(np.float64) for value in added), format_name == "q4")


def _kernels(n: int, k: int, format_name: str, dtype: str) -> list[str]:
    """Metal source of the kernels of a layer: for few rows, more, and many."""
    func = linear(n, k, format_name, dtype, _GPU, residual=True)
    scheduled = ScheduleGPU(metal_shim.TARGET)(tvm.IRModule({"main": func}))["main"]
    return list(metal_to_cpp.kernels(metal_shim.source(scheduled)).values())


@pytest.mark.parametrize("format_name", ["q4", "plain"])
def test_source_for_many_rows_has_simdgroup_matrices(format_name):
    kernels = _kernels(3584, 18944, format_name, "float16")
    for text in kernels:
        assert metal_to_cpp.threadgroup_bytes(text) <= _MAX_THREADGROUP_BYTES
    assert ["simdgroup_multiply_accumulate(" in text for text in kernels] == [False, False, True]
    assert "simdgroup_float8x8" in kernels[-1] and "simdgroup_half8x8" in kernels[-1]


def test_source_of_float32_has_none():
    assert not any("simdgroup_multiply_accumulate(" in text for text in _kernels(96, 64, "q4", "float32"))


@pytest.mark.parametrize("barrier", [_THREADGROUP_BARRIER, _SIMDGROUP_BARRIER])
def test_a_dropped_barrier_is_a_race(monkeypatch, barrier):
    edit_metal_source(monkeypatch, barrier, "")
    n, k, rows = 20, 64, 9
    kernel = metal_shim.compile(
        linear_many_rows(n, k, "plain", "float16", _GPU, bias=False, residual=False, out_dtype="float16")
    )
    ones = np.ones((max(n, rows), k), "float16")
    with pytest.raises(RuntimeError, match="race in shared memory"):
        kernel(ones[:rows], ones[:n], np.zeros((rows, n), "float16"))


def test_lanes_that_stay_away_are_an_error(monkeypatch):
    edit_metal_source(monkeypatch, "simdgroup_store(", "if (threadIdx.x % 2) simdgroup_store(")
    kernel = metal_shim.compile(
        linear_many_rows(20, 32, "plain", "float16", _GPU, bias=False, residual=False, out_dtype="float16")
    )
    with pytest.raises(RuntimeError, match="one warp meet in different operations"):
        kernel(np.ones((9, 32), "float16"), np.ones((20, 32), "float16"), np.zeros((9, 20), "float16"))
