import numpy as np
import pytest
from compiled import compiled, run

from tir_kernels.cpu.qk_norm import qk_norm

EPS = 1e-6


def normalised(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight.astype(np.float64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("num_q", "num_kv", "head_dim"), [(16, 8, 128), (3, 1, 20)])
def test_qk_norm(isa_target, num_q, num_kv, head_dim, dtype):
    target, isa = isa_target
    rng = np.random.default_rng(0)
    kernel = compiled(qk_norm(num_q, num_kv, head_dim, EPS, dtype, isa), target)
    q_weight, k_weight = rng.standard_normal((2, head_dim)).astype(dtype)
    for n in (0, 1, 40):  # 40 tokens of 32 heads are worth a parallel region
        qkv = (rng.standard_normal((n, num_q + 2 * num_kv, head_dim)) * rng.uniform(0.01, 100, (n, 1, 1))).astype(dtype)
        actual = run(kernel, qkv, q_weight, k_weight, shape=qkv.shape, dtype=dtype).astype(np.float64)
        q, k, v = np.split(qkv.astype(np.float64), [num_q, num_q + num_kv], axis=1)
        expected = np.concatenate([normalised(q, q_weight), normalised(k, k_weight)], axis=1)
        # As for rms_norm, with one sum a vector lane; bfloat16 is rounded twice.
        bound = (head_dim / isa.lanes + 12) * 2.0**-24 if dtype == "float32" else 2.02 * 2.0**-8
        assert np.all(np.abs(actual[:, : num_q + num_kv] - expected) <= bound * np.abs(expected))
        np.testing.assert_array_equal(actual[:, num_q + num_kv :], v)
