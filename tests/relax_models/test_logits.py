"""Logits of the compiled library against the references: every family, RoPE scaling and head layout, in float32."""

import ml_dtypes
import numpy as np
import pytest
import torch
from compiled_model import compile_model
from reference import TINY_CONFIGS, named_weights, reference_logits, reference_model

from tir_kernels.weight_format import weight_format


def assert_close(logits: np.ndarray, expected: np.ndarray) -> None:
    assert logits.shape == expected.shape and logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_prefill_chunks_and_decode(name, tmp_path):
    config = TINY_CONFIGS[name]
    model = reference_model(config, seed=11)
    # Past the original context of the scaled RoPEs (64 and 128) and past two pages of 64; chunks end within pages.
    ids = np.random.default_rng(2).integers(0, config.vocab_size, 210).tolist()
    expected = reference_logits(model, ids)
    engine = compile_model(config, named_weights(model), "q0f32", tmp_path)
    for start, stop in ((0, 1), (1, 70), (70, 71), (71, 200)):
        assert_close(engine.prefill(ids[start:stop]), expected[stop - 1])
    for i in range(200, 210):
        assert_close(engine.decode(ids[i]), expected[i])


def stored_weights(weights: dict[str, np.ndarray], quantization: str) -> dict[str, np.ndarray]:
    """The weights as the model folder stores them: the error of the quantization itself is not the library's."""
    packing = weight_format(quantization)
    round_plain = (lambda w: w.astype(ml_dtypes.bfloat16).astype(np.float32)) if quantization != "q0f32" else np.array
    return {
        name: packing.unpack(packing.pack(w), *w.shape) if w.ndim == 2 else round_plain(w)
        for name, w in weights.items()
    }


@pytest.mark.parametrize("quantization", ["q0bf16", "q4bf16_1"])
def test_bfloat16_and_4_bit(quantization, tmp_path):
    """Roundings are independent and add as a root of squares, relative to the size of the logits:

    - bfloat16: 8 values are rounded a layer (two norms, qkv, rotated q and k, probabilities, attention, two residuals),
      each by at most 2**-9, 2**-9 / sqrt(3) on average;
    - int8 prefill: each of 4 products a layer sees activations off by half a step of max|x| / 127 of a group of 32
      (about 2.5 standard deviations: 2.5 / 127 / sqrt(12) = 0.6 %) and weights off by half a step of the row's
      largest / 127 (about 4 standard deviations: 0.9 %);
    - panels of 4-bit weights unpacked to bfloat16 round each weight as well, which is less than that.

    Random weights do not damp errors from layer to layer, and softmax and gate amplify them: a factor of 3 covers both.
    """
    config = TINY_CONFIGS["qwen2-tied"]
    model = reference_model(config, seed=11)
    weights = named_weights(model)
    model.load_state_dict(
        {name: torch.from_numpy(w) for name, w in stored_weights(weights, quantization).items()}, strict=False
    )
    ids = np.random.default_rng(2).integers(0, config.vocab_size, 110).tolist()
    expected = reference_logits(model, ids)
    engine = compile_model(config, weights, quantization, tmp_path)
    per_layer = 8 * (2**-9 / 3**0.5) ** 2 + (4 * (0.006**2 + 0.009**2) if quantization == "q4bf16_1" else 0)
    bound = 3 * (config.num_hidden_layers * per_layer) ** 0.5
    actual = [engine.prefill(ids[:100])] + [engine.decode(ids[i]) for i in range(100, 110)]
    for logits, reference in zip(actual, expected[99:], strict=True):
        assert np.sqrt(np.mean((logits - reference) ** 2)) < bound * np.sqrt(np.mean(reference**2))
