"""ModelConfig: defaults, limits of the context, contradictions, and the way through mlc-chat-config.json."""

import dataclasses
import json

import pytest
from reference import TINY_CONFIGS, tiny

from relax_models.config import ModelConfig
from relax_models.config_hf import config_from_mlc
from relax_models.presets import PRESETS
from runtime.errors import UserError

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


def test_defaults():
    config = tiny("llama", max_position_embeddings=100000)
    assert (config.context_window_size, config.prefill_chunk_size, config.max_batch_size) == (100000, 2048, 8)
    assert tiny("llama", max_position_embeddings=300).prefill_chunk_size == 300
    assert tiny("llama", context_window_size=100).prefill_chunk_size == 100


@pytest.mark.parametrize(
    "facts, default, limit",
    [
        ({}, 512, 512),
        ({"rope_scaling": YARN}, 2048, 2048),
        ({"rope_scaling": YARN, "max_position_embeddings": 4096}, 4096, 4096),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.5}}, 512, 1280),
        ({"sliding_window": 128}, 128, 128),
        ({"sliding_window": 1024}, 512, 512),
    ],
)
def test_context(facts, default, limit):
    config = tiny("llama", **facts)
    assert (config.context_window_size, config.context_limit) == (default, limit)
    assert tiny("llama", context_window_size=limit, **facts).context_window_size == limit
    with pytest.raises(UserError, match=rf"context_window_size {limit + 1} is beyond the {limit} tokens"):
        tiny("llama", context_window_size=limit + 1, **facts)


@pytest.mark.parametrize(
    "facts, message",
    [
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) must be a multiple of num_key_value_heads \(3\)"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"vocab_size": 97.5}, "vocab_size is 97.5"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"head_dim": 63}, "head_dim is 63.*even"),
        ({"prefill_chunk_size": 1024}, r"prefill_chunk_size \(1024\) is longer than context_window_size \(512\)"),
        ({"max_batch_size": -1}, "max_batch_size is -1"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported.*linear, llama3, yarn"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn lacks original_max_position_embeddings"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor of rope_scaling is 0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 1}}, "linear has no parameter beta"),
    ],
)
def test_contradictions(facts, message):
    with pytest.raises(UserError, match=message):
        tiny("llama", **facts)


@pytest.mark.parametrize("config", [*TINY_CONFIGS.values(), *(p.config for p in PRESETS.values())])
def test_mlc_round_trip(config):
    text = json.dumps(config.to_mlc_dict())
    assert config_from_mlc(json.loads(text)) == config
    changed = dataclasses.replace(config, context_window_size=100, prefill_chunk_size=64, max_batch_size=3)
    whole_file = {"model_type": config.model_type, "model_config": changed.to_mlc_dict(), "vocab_size": 1}
    assert config_from_mlc(whole_file) == changed


def test_mlc_dict_is_a_copy():
    config = tiny("llama", rope_scaling=YARN)
    config.to_mlc_dict()["rope_scaling"]["factor"] = 1.0
    assert config.rope_scaling["factor"] == 4.0


def test_config_is_hashable():
    assert len({tiny("llama"), tiny("llama"), tiny("llama", rope_scaling=YARN)}) == 2


def test_fields_of_a_stock_mlc_folder():
    """model_config of mlc-ai/Llama-3.2-1B-Instruct-q4f16_1-MLC: its own names, and no max_position_embeddings."""
    stock = {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "rms_norm_eps": 1e-05,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
        "position_embedding_base": 500000.0,
        "rope_scaling": PRESETS["llama-3.2-1b"].config.rope_scaling,
        "context_window_size": 131072,
        "prefill_chunk_size": 8192,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "max_batch_size": 128,
        "disaggregation": False,
    }
    expected = dataclasses.replace(PRESETS["llama-3.2-1b"].config, prefill_chunk_size=8192, max_batch_size=128)
    assert config_from_mlc({"model_type": "llama", "model_config": stock}) == expected


def test_unsupported_mlc_model():
    with pytest.raises(UserError, match="'gemma2' are not supported; supported.* llama, mistral, qwen2, qwen3, pangu"):
        config_from_mlc({"model_type": "gemma2", "model_config": {}})
    with pytest.raises(UserError, match="lacks num_attention_heads|lacks rope_theta|lacks"):
        config_from_mlc({"model_type": "llama", "model_config": {}})


def test_config_is_frozen():
    config: ModelConfig = tiny("llama")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 1
