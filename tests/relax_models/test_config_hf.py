"""Configs from published config.json texts, and what transformers itself makes of them."""

import json

import hf_configs
import pytest
import transformers

from relax_models.config_hf import config_from_hf, config_from_hf_folder
from relax_models.presets import PRESETS
from runtime.errors import UserError

PUBLISHED = {
    "qwen2.5-0.5b": hf_configs.QWEN2_5_0_5B,
    "qwen2.5-coder-0.5b": hf_configs.QWEN2_5_0_5B,
    "qwen3-0.6b": hf_configs.QWEN3_0_6B,
    "llama-3.2-1b": hf_configs.LLAMA_3_2_1B,
    "llama-3.1-8b": hf_configs.LLAMA_3_1_8B,
    "smollm2-135m": hf_configs.SMOLLM2_135M,
    "pangu-1b": hf_configs.PANGU_1B,
    "pangu-7b": hf_configs.PANGU_7B,
}
SUPPORTED_BY_TRANSFORMERS = [
    hf_configs.QWEN2_5_0_5B,
    hf_configs.QWEN3_0_6B,
    hf_configs.LLAMA_3_2_1B,
    hf_configs.LLAMA_3_1_8B,
    hf_configs.LLAMA_2_7B,
    hf_configs.SMOLLM2_135M,
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_equal_the_published_config(name, tmp_path):
    (tmp_path / "config.json").write_text(PUBLISHED[name])
    assert config_from_hf_folder(tmp_path) == PRESETS[name].config


@pytest.mark.parametrize("text", SUPPORTED_BY_TRANSFORMERS)
def test_same_facts_as_transformers(text, tmp_path):
    """Defaults and derived fields, such as head_dim, and the form of config.json that transformers 5 writes."""
    facts = json.loads(text)
    ours = config_from_hf(facts)
    theirs = transformers.AutoConfig.for_model(**facts)
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours.head_dim == head_dim
    for name in ("hidden_size", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "vocab_size"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    theirs.save_pretrained(tmp_path)
    assert "rope_parameters" in (tmp_path / "config.json").read_text()
    assert config_from_hf_folder(tmp_path) == ours


def test_llama_2_defaults():
    """A file of 2023: no num_key_value_heads, no rope_theta."""
    config = config_from_hf(json.loads(hf_configs.LLAMA_2_7B))
    assert (config.num_key_value_heads, config.rope_theta, config.head_dim) == (32, 10000.0, 128)


def test_biases():
    facts = json.loads(hf_configs.LLAMA_3_2_1B)
    assert not config_from_hf(facts).qkv_bias
    config = config_from_hf(facts | {"attention_bias": True})
    assert config.qkv_bias and config.o_bias
    config = config_from_hf(json.loads(hf_configs.QWEN2_5_0_5B))
    assert config.qkv_bias and not config.o_bias
    pangu = json.loads(hf_configs.PANGU_7B)
    assert config_from_hf(pangu).qkv_bias and config_from_hf(pangu).o_bias
    assert not config_from_hf(pangu | {"bias": False}).o_bias


def test_sliding_window_shortens_the_context():
    facts = json.loads(hf_configs.MISTRAL_7B_V0_1)
    assert config_from_hf(facts).context_window_size == 4096
    assert config_from_hf(facts | {"sliding_window": None}).context_window_size == 32768
    qwen = json.loads(hf_configs.QWEN2_5_0_5B) | {"sliding_window": 4096}
    assert config_from_hf(qwen).context_window_size == 32768
    assert config_from_hf(qwen | {"use_sliding_window": True}).context_window_size == 4096


def test_yarn_as_the_model_card_writes_it():
    """Qwen2.5's card adds this to config.json; the older key is "type"."""
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    config = config_from_hf(json.loads(hf_configs.QWEN2_5_0_5B) | {"rope_scaling": scaling})
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert config.rope_scaling == expected
    assert config.context_window_size == 131072
    del scaling["original_max_position_embeddings"]
    assert config_from_hf(json.loads(hf_configs.QWEN2_5_0_5B) | {"rope_scaling": scaling}).rope_scaling == expected


@pytest.mark.parametrize("field", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"])
@pytest.mark.parametrize("text", [hf_configs.QWEN3_0_6B, hf_configs.LLAMA_2_7B])
def test_missing_field(text, field):
    facts = json.loads(text)
    del facts[field]
    with pytest.raises(UserError, match=f"lacks {field}"):
        config_from_hf(facts)


@pytest.mark.parametrize(
    "field", ["vocab_size", "rms_norm_eps", "max_position_embeddings", "rope_theta", "num_key_value_heads"]
)
def test_missing_field_of_pangu(field):
    facts = json.loads(hf_configs.PANGU_7B)
    del facts[field]
    with pytest.raises(UserError, match=f"lacks {field}"):
        config_from_hf(facts)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "gemma3"}, "'gemma3' are not supported; .* llama, mistral, qwen2, qwen3, PanguEmbedded"),
        ({"model_type": None}, "None are not supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"mlp_bias": True}, "mlp_bias is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
        ({"rope_theta": "1e6"}, "rope_theta is '1e6'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "llama3 lacks low_freq_factor"),
        ({"head_dim": None, "num_attention_heads": 30}, r"hidden_size \(2048\) is not a multiple of num_attention_he"),
    ],
)
def test_unsupported(change, message):
    with pytest.raises(UserError, match=message):
        config_from_hf(json.loads(hf_configs.LLAMA_3_2_1B) | change)


def test_folders(tmp_path):
    with pytest.raises(UserError, match="has no config.json"):
        config_from_hf_folder(tmp_path)
    with pytest.raises(UserError, match="missing is not a folder"):
        config_from_hf_folder(tmp_path / "missing")
    (tmp_path / "config.json").write_text('{"model_type": "llama",')
    with pytest.raises(UserError, match="config.json is not valid JSON"):
        config_from_hf_folder(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(UserError, match="config.json is not valid JSON"):
        config_from_hf_folder(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="does not hold a JSON object"):
        config_from_hf_folder(tmp_path)
