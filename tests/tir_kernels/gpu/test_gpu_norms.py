"""RMSNorm of rows and of q and k heads, against float64."""

import ml_dtypes
import numpy as np
import pytest
from gpu import emulated_cuda

from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.qk_norm import qk_norm
from tir_kernels.gpu.rms_norm import rms_norm

GPU = gpu_features(emulated_cuda.target())
EPS = 1e-6
# Sums and products in float32; 16 bits are rounded twice.
BOUND = {"float32": 20 * 2.0**-24, "float16": 2.1 * 2.0**-11, "bfloat16": 2.1 * 2.0**-8}


def random(rng, *shape: int, dtype: str) -> np.ndarray:
    values = rng.standard_normal(shape) * rng.uniform(0.01, 100, (*shape[:-1], 1))
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def normalised(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight.astype(np.float64)


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("hidden_size", [600, 3])
def test_rms_norm(hidden_size, dtype):
    rng = np.random.default_rng(0)
    kernel = emulated_cuda.compile(rms_norm(hidden_size, EPS, dtype, GPU))
    weight = random(rng, 1, hidden_size, dtype=dtype)[0]
    for n in (1, 5):
        x = random(rng, n, hidden_size, dtype=dtype)
        actual = np.full_like(x, np.nan)
        kernel(x, weight, actual)
        expected = normalised(x.astype(np.float64), weight)
        tiny = 2.0**-24 if dtype == "float16" else 0  # half of the least float16
        assert np.all(np.abs(actual.astype(np.float64) - expected) <= BOUND[dtype] * np.abs(expected) + 100 * tiny)


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize(("num_q", "num_kv", "head_dim"), [(4, 2, 128), (3, 1, 20)])
def test_qk_norm(num_q, num_kv, head_dim, dtype):
    rng = np.random.default_rng(0)
    kernel = emulated_cuda.compile(qk_norm(num_q, num_kv, head_dim, EPS, dtype, GPU))
    q_weight, k_weight = (rng.standard_normal((2, head_dim)) + 2).astype(random(rng, 1, dtype=dtype).dtype)
    qkv = random(rng, 3, num_q + 2 * num_kv, head_dim, dtype=dtype)
    actual = np.full_like(qkv, np.nan)
    kernel(qkv, q_weight, k_weight, actual)
    q, k, v = np.split(qkv.astype(np.float64), [num_q, num_q + num_kv], axis=1)
    expected = np.concatenate([normalised(q, q_weight), normalised(k, k_weight)], axis=1)
    tiny = 2.0**-24 if dtype == "float16" else 0
    difference = np.abs(actual[:, : num_q + num_kv].astype(np.float64) - expected)
    assert np.all(difference <= BOUND[dtype] * np.abs(expected) + 10 * tiny)
    np.testing.assert_array_equal(actual[:, num_q + num_kv :].astype(np.float64), v)
