"""Linear layers and embeddings on MLC's weight layouts, with the schedules that passes/schedule_gpu.py gives them."""

import ml_dtypes
import numpy as np
import pytest
import tvm
from gpu import emulated_cuda
from test_mlc_weights import dequantized, stored

from passes.schedule_gpu import ScheduleGPU
from tir_kernels.gpu.embedding import embedding
from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.linear import linear
from tir_kernels.gpu.silu_mul import silu_mul

TARGET = emulated_cuda.target()
GPU = gpu_features(TARGET)
QUANTIZATIONS = {"float16": "q4f16_1", "bfloat16": "q4bf16_1", "float32": "q4f32_1"}
EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}


def scheduled(func: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    return ScheduleGPU(TARGET)(tvm.IRModule({"main": func}))["main"]


def random(rng, *shape: int, dtype: str) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def weights(rng, n: int, k: int, format_name: str, dtype: str) -> tuple[list[np.ndarray], np.ndarray]:
    """(tensors of a matrix, the float64 [n, k] that they stand for)."""
    weight = random(rng, n, k, dtype=dtype)
    if format_name == "plain":
        return [weight], weight.astype(np.float64)
    tensors = stored(weight.astype(np.float32), QUANTIZATIONS[dtype])
    return tensors, dequantized(*tensors, k)


@pytest.mark.parametrize(
    ("n", "k", "format_name", "dtype", "rows"),
    [
        (96, 64, "q4", "float16", (1,)),
        (40, 256, "plain", "bfloat16", (1,)),
        (33, 96, "q4", "float32", (1,)),
        (96, 64, "q4", "float16", (1, 2, 5, 11)),
        (131, 32, "q4", "bfloat16", (3, 9)),
        (64, 40, "plain", "float32", (2, 70)),
        (140, 224, "q4", "float16", (130,)),  # more steps than stages
        (64, 160, "plain", "bfloat16", (20,)),
        (24, 64, "plain", "float16", (9,)),
        (30, 40, "plain", "float16", (9,)),  # too few input features for tensor cores
    ],
)
@pytest.mark.parametrize("extra", ["", "bias", "residual"])
def test_linear(n, k, format_name, dtype, rows, extra):
    rng = np.random.default_rng(n + k)
    fixed = rows[0] if rows == (1,) else None
    arguments = {extra: True} if extra else {"out_dtype": "float32"}
    func = linear(n, k, format_name, dtype, GPU, m=fixed, **arguments)
    kernel = emulated_cuda.compile(scheduled(func))
    tensors, weight = weights(rng, n, k, format_name, dtype)
    for m in rows:
        x = random(rng, m, k, dtype=dtype)
        added = {"": [], "bias": [random(rng, n, dtype=dtype)], "residual": [random(rng, m, n, dtype=dtype)]}[extra]
        out = np.full((m, n), np.nan, np.float32 if not extra else x.dtype)
        kernel(x, *tensors, *added, out)
        expected = x.astype(np.float64) @ weight.T + sum(value.astype(np.float64) for value in added)
        # Weights are rounded to dtype, the sum to float32 k times and to dtype once.
        size = np.abs(x.astype(np.float64)) @ np.abs(weight).T
        bound = (EPSILON[dtype] * (format_name == "q4" and fixed is None) + k * 2.0**-24) * size
        bound += EPSILON["float32" if not extra else dtype] * np.abs(expected) + 1e-6
        assert np.all(np.abs(out.astype(np.float64) - expected) <= bound)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_unpacked_weights_are_rounded_once(dtype):
    rng = np.random.default_rng(2)
    words = rng.integers(0, 1 << 32, (24, 8), np.uint32)  # all codes
    scales = random(rng, 24, 2, dtype=dtype)
    scales[0] = np.array(6e-8, scales.dtype)  # subnormal in float16
    kernel = emulated_cuda.compile(scheduled(linear(24, 64, "q4", dtype, GPU, out_dtype="float32")))
    out = np.full((64, 24), np.nan, np.float32)
    kernel(np.eye(64).astype(scales.dtype), words, scales, out)
    weight = dequantized(words, scales, 64)
    np.testing.assert_array_equal(out.T, weight.astype(scales.dtype).astype(np.float32))


@pytest.mark.parametrize(("format_name", "dtype"), [("q4", "float16"), ("plain", "float32"), ("q4", "bfloat16")])
def test_embedding(format_name, dtype):
    rng = np.random.default_rng(0)
    tensors, weight = weights(rng, 50, 72, format_name, dtype)
    ids = np.array([49, 0, 7, 7, 31], np.int32)
    out = np.full((5, 72), np.nan, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    emulated_cuda.compile(scheduled(embedding(50, 72, format_name, dtype, GPU)))(*tensors, ids, out)
    np.testing.assert_array_equal(out, weight[ids].astype(out.dtype))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_silu_mul(dtype):
    gate_up = random(np.random.default_rng(1), 3, 2 * 80, dtype=dtype)
    out = np.full((3, 80), np.nan, dtype)
    emulated_cuda.compile(scheduled(silu_mul(80, dtype, GPU)))(gate_up, out)
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=1)
    np.testing.assert_allclose(out, gate / (1 + np.exp(-gate)) * up, rtol=8 * EPSILON[dtype], atol=1e-6)
