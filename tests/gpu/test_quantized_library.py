"""4-bit CUDA libraries on the emulator, against a torch model with the weights that the folder holds."""

import numpy as np
import pytest
import torch
from gpu.emulated_library import compile_emulated
from reference import TINY_CONFIGS, named_weights, reference_logits, reference_model
from test_mlc_weights import dequantized, stored

CONFIG = TINY_CONFIGS["qwen2-tied"]
ROUNDING = {"q4f16_1": 2**-11, "q4bf16_1": 2**-8}


def stored_weights(weights: dict[str, np.ndarray], quantization: str) -> dict[str, np.ndarray]:
    return {
        name: dequantized(*stored(w, quantization), w.shape[1]).astype(np.float32) if w.ndim == 2 else w
        for name, w in weights.items()
    }


@pytest.mark.parametrize("quantization", list(ROUNDING))
def test_logits_of_a_prompt_in_chunks_and_of_decode_steps(quantization, tmp_path):
    """Roundings as in tests/relax_models/test_logits.py: 8 values a layer and each weight, independent, a factor of 3
    for softmax."""
    model = reference_model(CONFIG, seed=11)
    weights = named_weights(model)
    state = {name: torch.from_numpy(w) for name, w in stored_weights(weights, quantization).items()}
    model.load_state_dict(state, strict=False)
    ids = np.random.default_rng(2).integers(0, CONFIG.vocab_size, 60).tolist()
    expected = reference_logits(model, ids)
    cuda = compile_emulated(CONFIG, weights, quantization, tmp_path / "cuda")
    actual = {0: cuda.prefill(ids[:1]), 6: cuda.prefill(ids[1:7]), 56: cuda.prefill(ids[7:57])}
    actual |= {i: cuda.decode(ids[i]) for i in range(57, 60)}
    bound = 3 * (CONFIG.num_hidden_layers * 12) ** 0.5 * ROUNDING[quantization] / 3**0.5
    for i, logits in actual.items():
        assert np.sqrt(np.mean((logits - expected[i]) ** 2)) < bound * np.sqrt(np.mean(expected[i] ** 2))


def test_names_and_shapes_are_those_of_mlc(tmp_path):
    """As mlc_llm convert_weight --quantization q4f16_1 writes a Qwen2 model (its c_attn is our qkv_proj)."""
    cuda = compile_emulated(CONFIG, named_weights(reference_model(CONFIG, seed=11)), "q4f16_1", tmp_path / "cuda")
    params = {param.name: (param.dtype, param.shape) for param in cuda.library.metadata.params}
    hidden, vocab = CONFIG.hidden_size, CONFIG.vocab_size
    qkv = (CONFIG.num_attention_heads + 2 * CONFIG.num_key_value_heads) * CONFIG.head_dim
    assert params["model.embed_tokens.q_weight"] == ("uint32", (vocab, hidden // 8))
    assert params["model.embed_tokens.q_scale"] == ("float16", (vocab, hidden // 32))
    assert params["model.layers.0.self_attn.c_attn.q_weight"] == ("uint32", (qkv, hidden // 8))
    assert params["model.layers.0.self_attn.c_attn.bias"] == ("float16", (qkv,))
    assert params["model.layers.0.input_layernorm.weight"] == ("float16", (hidden,))
    assert "lm_head.q_weight" not in params
