"""The reference harness itself: openPangu's plain torch model against an equivalent that Hugging Face has."""

import dataclasses

import numpy as np
import pytest
from reference import TINY_CONFIGS, hf_model, named_weights, reference_logits, reference_model


@pytest.mark.parametrize("name", ["pangu", "pangu-tied"])
def test_pangu_is_llama_with_attention_biases(name):
    """The published code derives openPangu from transformers' LlamaModel; with attention_bias the two are the same."""
    config = TINY_CONFIGS[name]
    pangu = reference_model(config, seed=3)
    llama = hf_model(dataclasses.replace(config, model_type="llama"), seed=3)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 90).tolist()
    assert sorted(named_weights(pangu)) == sorted(named_weights(llama))
    np.testing.assert_allclose(reference_logits(pangu, ids), reference_logits(llama, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_logits_are_neither_constant_nor_huge(name):
    config = TINY_CONFIGS[name]
    logits = reference_logits(reference_model(config, seed=1), list(range(40)))
    assert logits.shape == (40, config.vocab_size)
    assert 0.1 < logits.std() < 30 and np.abs(np.diff(logits, axis=0)).max() > 0.1
