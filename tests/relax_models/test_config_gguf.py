"""Configs from GGUF files that the gguf package's own writer made, with the keys of llama.cpp's converters."""

import math

import gguf
import numpy as np
import pytest
from reference import tiny

from relax_models.config_gguf import config_from_gguf
from runtime.errors import UserError


def write(path, architecture="qwen2", tensors=(), **keys):
    """A GGUF file with the metadata of `tiny(...)`; `keys` adds or changes metadata, None leaves a key out."""
    values = {
        "block_count": 2,
        "context_length": 512,
        "embedding_length": 256,
        "feed_forward_length": 160,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 1000000.0,
    } | keys
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in values.items():
        if value is not None:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(f"{architecture}.{name}", value)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for name, array in {"token_embd.weight": np.zeros((97, 256), np.float32), **dict(tensors)}.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def small(*names):
    return {name: np.zeros(32, np.float32) for name in names}


def test_families(tmp_path):
    path = tmp_path / "m.gguf"
    biases = small("blk.0.attn_q.bias", "output.weight")
    assert config_from_gguf(write(path, "qwen2", biases)) == tiny("qwen2", rope_theta=1000000.0)
    tied = tiny("llama", tie_word_embeddings=True, rope_theta=1000000.0)
    assert config_from_gguf(write(path, "llama", **{"rope.dimension_count": 64})) == tied
    config = tiny("qwen3", head_dim=128, rope_theta=1000000.0)
    keys = {"attention.key_length": 128, "attention.value_length": 128}
    assert config_from_gguf(write(path, "qwen3", small("output.weight"), **keys)) == config
    biases = small("blk.0.attn_q.bias", "blk.0.attn_output.bias", "output.weight")
    config = tiny("pangu_embedded", rope_theta=16000000.0)
    assert config_from_gguf(write(path, "pangu-embedded", biases, **{"rope.freq_base": 16000000.0})) == config


def test_defaults_of_missing_keys(tmp_path):
    keys = {"attention.head_count_kv": None, "rope.freq_base": None}
    config = config_from_gguf(write(tmp_path / "m.gguf", "llama", **keys))
    assert config == tiny("llama", num_key_value_heads=4, tie_word_embeddings=True, rope_theta=10000.0)


def test_an_output_that_is_a_copy_of_the_table_is_tied(tmp_path):
    table = np.random.default_rng(0).standard_normal((9000, 256)).astype(np.float32)
    changed = table.copy()
    changed[-1, -1] += 1
    for output, tied in ((table, True), (changed, False), (table[:-1], False), (table.astype(np.float16), False)):
        tensors = {"token_embd.weight": table, "output.weight": output}
        assert config_from_gguf(write(tmp_path / "m.gguf", "qwen2", tensors)).tie_word_embeddings is tied


def llama3_divisors(factor, dim, theta, original=8192, low=1.0, high=4.0):
    """rope_freqs as llama.cpp's convert_hf_to_gguf.py computes them (LlamaModel.generate_extra_tensors)."""
    divisors = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * theta ** (i / dim)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recognized(tmp_path, factor):
    tensors = {"rope_freqs.weight": llama3_divisors(factor, 64, 500000.0)}
    config = config_from_gguf(write(tmp_path / "m.gguf", "llama", tensors, **{"rope.freq_base": 500000.0}))
    assert config.rope_scaling == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_other_frequency_divisors_are_refused(tmp_path):
    tensors = {"rope_freqs.weight": llama3_divisors(8.0, 64, 500000.0, original=4096)}
    with pytest.raises(UserError, match="rope_freqs other than those of Llama 3.1"):
        config_from_gguf(write(tmp_path / "m.gguf", "llama", tensors, **{"rope.freq_base": 500000.0}))


def test_scaling_keys(tmp_path):
    path = tmp_path / "m.gguf"
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128}
    config = config_from_gguf(write(path, **keys))
    assert config.rope_scaling == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    config = config_from_gguf(write(path, **{"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}))
    assert config.rope_scaling == {"rope_type": "linear", "factor": 2.0}
    assert config_from_gguf(write(path, **{"rope.scaling.type": "none"})).rope_scaling is None
    with pytest.raises(UserError, match="scales RoPE by 'longrope'"):
        config_from_gguf(write(path, **{"rope.scaling.type": "longrope"}))
    with pytest.raises(UserError, match="attn_factor"):
        config_from_gguf(write(path, **keys, **{"rope.scaling.attn_factor": 1.5}))


@pytest.mark.parametrize(
    "architecture, keys, message",
    [
        ("gemma3", {}, "architecture 'gemma3'.*llama, qwen2, qwen3, pangu-embedded"),
        ("llama", {"block_count": None}, "lacks llama.block_count"),
        ("llama", {"attention.layer_norm_rms_epsilon": None}, "lacks llama.attention.layer_norm_rms_epsilon"),
        ("llama", {"expert_count": 8}, "mixture-of-experts"),
        ("llama", {"rope.dimension_count": 32}, "rotate in part"),
        ("qwen3", {"attention.key_length": 128, "attention.value_length": 64}, "differ in size"),
        ("llama", {"attention.head_count": 0}, "0 attention heads"),
        ("llama", {"attention.head_count_kv": 3}, "must be a multiple of num_key_value_heads"),
    ],
)
def test_unsupported(tmp_path, architecture, keys, message):
    with pytest.raises(UserError, match=message):
        config_from_gguf(write(tmp_path / "m.gguf", architecture, **keys))


def test_sliding_window_of_llama(tmp_path):
    config = config_from_gguf(write(tmp_path / "m.gguf", "llama", **{"attention.sliding_window": 128}))
    assert config.context_window_size == 128


def test_truncated_and_foreign_files(tmp_path):
    data = write(tmp_path / "m.gguf").read_bytes()
    for size in (10, 100, len(data) - 1):
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        with pytest.raises(UserError, match="cut.gguf.*truncated"):
            config_from_gguf(tmp_path / "cut.gguf")
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(UserError, match="text.gguf is not a GGUF file"):
        config_from_gguf(tmp_path / "text.gguf")
    with pytest.raises(UserError, match="missing.gguf does not exist"):
        config_from_gguf(tmp_path / "missing.gguf")
