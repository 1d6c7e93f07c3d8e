"""Presets: parameter counts as published, names, aliases."""

import math

import pytest

from relax_models.presets import PRESETS, preset
from relax_models.registry import export_model
from runtime.errors import UserError

# Counts of the hub's safetensors index, or of the total_size in model.safetensors.index.json.
# The files of Qwen3 0.6B and 1.7B hold the tied table twice; one copy (vocab_size * hidden_size) is taken off.
PUBLISHED_PARAMETERS = {
    "qwen": 494_032_768,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-coder-0.5b": 494_032_768,
    "qwen2.5-coder-1.5b": 1_543_714_304,
    "qwen2.5-coder-7b": 7_615_616_512,
    "qwen3-0.6b": 751_632_384 - 151936 * 1024,
    "qwen3-1.7b": 2_031_739_904 - 151936 * 2048,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    # total_size 16,061,784,576 bytes, less 34 inv_freq tensors of 64 float32, in bfloat16.
    "pangu-7b": (16_061_784_576 - 34 * 64 * 4) // 2,
}


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameter_count(name):
    _, parameters = export_model(PRESETS[name].config, "bfloat16")
    assert sum(math.prod(parameter.shape) for _, parameter in parameters) == PUBLISHED_PARAMETERS[name]


def test_size_of_pangu_1b():
    """The model card: 1B, not counting the embedding table. The GGUF file of version 1.1 has 340 tensors."""
    config = PRESETS["pangu-1b"].config
    _, parameters = export_model(config, "bfloat16")
    count = sum(math.prod(parameter.shape) for _, parameter in parameters) - config.vocab_size * config.hidden_size
    assert round(count / 1e9) == 1
    # Ours are fused: q, k, v (weights and biases) and gate, up, so 4 + 1 tensors fewer a layer.
    assert len(parameters) + 26 * 5 == 340


def test_every_preset_is_checked():
    assert set(PRESETS) == {*PUBLISHED_PARAMETERS, "pangu-1b"}


def test_names():
    assert preset("qwen") == PRESETS["qwen"]
    assert preset("qwen").config == preset("Qwen2.5-0.5B").config
    assert preset("qwen").display_name == "Qwen2.5-0.5B-Instruct"
    assert preset("qwen").hub_id == "Qwen/Qwen2.5-0.5B-Instruct"
    assert preset("smollm2-135m").hub_id == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_unknown_name():
    with pytest.raises(UserError, match=r"no model 'qwen2.5-05b'.*did you mean .*qwen2.5-0.5b"):
        preset("qwen2.5-05b")
    with pytest.raises(UserError, match="no model 'gpt'.*the presets are qwen2.5-0.5b, .*pangu-7b"):
        preset("gpt")
