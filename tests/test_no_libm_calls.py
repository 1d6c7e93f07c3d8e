"""No kernel of a whole model library computes one element at a time in libm, on any x86 tier."""

import pytest
from compiled_model import build
from libm_calls import libm_calls

from relax_models.config import ModelConfig
from runtime.policy import make_policy

CONFIG = ModelConfig(
    model_type="qwen3",
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=100,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    context_window_size=512,
    prefill_chunk_size=256,
)


@pytest.mark.parametrize(("mcpu", "quantization"), [("znver4", "q4bf16_1"), ("haswell", "q0f32"), ("x86-64", "q0bf16")])
def test_model_library(mcpu, quantization, tmp_path):
    library = tmp_path / "model.so"
    policy = make_policy("entropy", "latent", "layer_skip=1")  # all kernels but those of other forms
    build(CONFIG, quantization, library, target=f"llvm -mcpu={mcpu}", policy=policy)
    assert libm_calls(library) == set()
