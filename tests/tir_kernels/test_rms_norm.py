import ml_dtypes
import numpy as np
import pytest
from compiled import compiled, run

from tir_kernels.cpu.rms_norm import rms_norm

EPS = 1e-6


def reference(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight.astype(np.float64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("hidden_size", [896, 100, 3])
def test_rms_norm(isa_target, hidden_size, dtype):
    target, isa = isa_target
    rng = np.random.default_rng(0)
    kernel = compiled(rms_norm(hidden_size, EPS, dtype, isa), target)
    weight = rng.standard_normal(hidden_size).astype(dtype)
    for n in (0, 1, 5, 400):  # 400 rows of 896 are worth a parallel region, fewer are not
        x = (rng.standard_normal((n, hidden_size)) * rng.uniform(0.01, 100, (n, 1))).astype(dtype)
        expected = reference(x, weight)
        # float32: the sum of squares has at most hidden_size/lanes/4 + log2(lanes) + 4 roundings, halved by the root; a
        # few more follow. bfloat16: rounded twice, at 2^-8 relative each.
        bound = (hidden_size / isa.lanes / 4 + 12) * 2.0**-24 if dtype == "float32" else 2.02 * 2.0**-8
        actual = run(kernel, x, weight, shape=x.shape, dtype=dtype).astype(np.float64)
        assert np.all(np.abs(actual - expected) <= bound * np.abs(expected))


def test_rounds_before_the_weight_as_hugging_face(isa_target):
    """LlamaRMSNorm returns weight * normalised.to(bfloat16), itself rounded to bfloat16."""
    torch = pytest.importorskip("torch")
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    target, isa = isa_target
    rng = np.random.default_rng(1)
    x = rng.standard_normal((64, 576)).astype(ml_dtypes.bfloat16)
    weight = rng.standard_normal(576).astype(ml_dtypes.bfloat16)
    norm = LlamaRMSNorm(576, EPS).to(torch.bfloat16)
    norm.weight.data = torch.from_numpy(weight.astype(np.float32)).to(torch.bfloat16)
    expected = norm(torch.from_numpy(x.astype(np.float32)).to(torch.bfloat16)).float().detach().numpy()
    kernel = compiled(rms_norm(576, EPS, "bfloat16", isa), target)
    actual = run(kernel, x, weight, shape=x.shape, dtype="bfloat16").astype(np.float32)
    # A float32 sum in another order moves a value across a rounding border now and then.
    assert (actual == expected).mean() > 0.998
