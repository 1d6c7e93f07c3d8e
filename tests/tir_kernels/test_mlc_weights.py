"""MLC's weight layouts, against mlc_llm's own formulas written out in numpy."""

import numpy as np
import pytest

from runtime.errors import UserError
from tir_kernels.mlc_weights import mlc_storage
from tir_kernels.quantization import CONVERTERS, default_quantization, model_dtype, weight_storage


def stored(weight: np.ndarray, quantization: str = "q4f16_1") -> list[np.ndarray]:
    """(q_weight, q_scale) as conversion writes them, checked against what the library will want."""
    tensors = mlc_storage(quantization).tensors(*weight.shape)
    arrays = [CONVERTERS[tensor.format].pack(weight) for tensor in tensors]
    assert [(array.shape, array.dtype.name) for array in arrays] == [(t.shape, t.dtype) for t in tensors]
    return arrays


def dequantized(q_weight: np.ndarray, q_scale: np.ndarray, k: int) -> np.ndarray:
    """GroupQuantize._dequantize of mlc_llm (quantization/group_quantization.py) in float64, element by element."""
    weight = np.empty((len(q_weight), k))
    for i in range(len(q_weight)):
        for j in range(k):
            code = (int(q_weight[i, j // 8]) >> (j % 8 * 4)) & 0xF
            weight[i, j] = (code - 7) * float(q_scale[i, j // 32])
    return weight


def mlc_quantized(weight: np.ndarray) -> np.ndarray:
    """GroupQuantize._quantize of mlc_llm, and back: the largest weight of a group is seven steps."""
    groups = weight.reshape(len(weight), -1, 32)
    scale = (np.abs(groups).max(-1, keepdims=True) / 7).astype(np.float16).astype(np.float64)
    return ((np.clip(np.rint(groups / scale + 7), 0, 14) - 7) * scale).reshape(weight.shape)


@pytest.mark.parametrize("quantization", ["q4f16_1", "q4bf16_1", "q4f32_1"])
def test_codes_and_scales_mean_the_weight_and_are_closer_than_mlcs(quantization):
    weight = np.random.default_rng(0).standard_normal((40, 96)).astype(np.float32)
    q_weight, q_scale = stored(weight, quantization)
    ours = np.square(dequantized(q_weight, q_scale, 96) - weight).sum()
    assert ours < 0.85 * np.square(mlc_quantized(weight) - weight).sum()


def test_columns_that_do_not_fill_a_group():
    weight = np.random.default_rng(1).standard_normal((5, 40)).astype(np.float32)
    q_weight, q_scale = stored(weight)
    assert q_weight.shape == (5, 8) and q_scale.shape == (5, 2)
    np.testing.assert_allclose(dequantized(q_weight, q_scale, 40), weight, atol=0.3)


def test_weights_of_gguf_q4_0_and_of_mlc_keep_their_values():
    rng = np.random.default_rng(2)
    scale = rng.standard_normal((20, 4, 1)).astype(np.float16).astype(np.float32)
    for low, high in ((-8, 7), (-7, 7), (-3, 2)):
        weight = (rng.integers(low, high, (20, 4, 32), endpoint=True) * scale).reshape(20, 128)
        np.testing.assert_array_equal(dequantized(*stored(weight), 128), weight)


def test_groups_of_one_value_and_of_zeros():
    weight = np.repeat(np.array([[0.0, 3.0, -0.25, 1e-3]], np.float32), 32, axis=1)
    q_weight, q_scale = stored(weight)
    np.testing.assert_allclose(dequantized(q_weight, q_scale, 128), weight, rtol=1e-3)
    assert q_scale.dtype == np.float16 and np.isfinite(q_scale).all()


def test_plain_layouts_are_the_weight_itself():
    (tensor,) = mlc_storage("q0bf16").tensors(6, 10)
    assert (tensor.name, tensor.shape, tensor.dtype, tensor.format) == ("weight", (6, 10), "bfloat16", "plain")


def test_quantizations_by_target():
    assert [default_quantization(kind) for kind in ("llvm", "cuda", "metal")] == ["q4bf16_1", "q4f16_1", "q4f16_1"]
    assert [model_dtype(name) for name in ("q4f16_1", "q0bf16", "q4f32_1")] == ["float16", "bfloat16", "float32"]
    assert weight_storage("q4bf16_1", "llvm").name == "q4_n32g32"
    assert weight_storage("q4bf16_1", "cuda").name == "mlc"
    for name, kind in (("q4f16_1", "llvm"), ("q3f16_1", "cuda")):
        with pytest.raises(UserError, match=name):
            weight_storage(name, kind)
    with pytest.raises(UserError, match="q4f16_1"):
        model_dtype("int4")
