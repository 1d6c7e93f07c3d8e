"""Tensors of Hugging Face folders and GGUF files, against transformers and llama.cpp's own layout."""

import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_gguf import quantized, write_gguf
from transformers import LlamaConfig, LlamaForCausalLM

from relax_models.weight_source import GGUFSource, HFFolderSource, open_weight_source
from runtime.errors import UserError


@pytest.fixture(scope="module", params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def model(request):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
    )
    return LlamaForCausalLM(config).to(request.param)


@pytest.mark.parametrize("max_shard_size", ["10GB", "30KB"])
def test_hugging_face_folder(model, tmp_path, max_shard_size):
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "30KB")
    source, expected = open_weight_source(tmp_path), model.state_dict()
    assert isinstance(source, HFFolderSource) and set(source.names()) == set(expected)
    for name, tensor in expected.items():
        assert source.shape(name) == tuple(tensor.shape)
        assert source.bits_per_weight(name) == 8 * tensor.element_size()
        found = source.load(name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, tensor.float().numpy())
        np.testing.assert_array_equal(source.load_rows(name, 1, 3), tensor[1:3].float().numpy())


def test_hugging_face_folders_with_faults(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        open_weight_source(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has neither model.safetensors nor model.safetensors.index.json"):
        HFFolderSource(tmp_path)
    weight = torch.arange(12, dtype=torch.float32).reshape(4, 3)
    path, index = tmp_path / "model.safetensors", tmp_path / "model.safetensors.index.json"
    save_file({"w": weight}, path)
    content = path.read_bytes()
    with pytest.raises(UserError, match=f"{tmp_path} has no tensor v; the weights belong to another model"):
        HFFolderSource(tmp_path).load("v")
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"tensor w of shape \[4, 3\] ends at byte {len(content)}, the file has"):
        HFFolderSource(tmp_path)
    for size in (0, 7, 8, 20):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match="is truncated or no safetensors file"):
            HFFolderSource(tmp_path)
    path.write_bytes(content[:8] + b"x" * (len(content) - 8))
    with pytest.raises(UserError, match="has a corrupt safetensors header"):
        HFFolderSource(tmp_path)
    save_file({"w": weight.int()}, path)
    with pytest.raises(UserError, match="tensor w is stored as I32; only F32, F16 and BF16"):
        HFFolderSource(tmp_path).load("w")
    index.write_text("[]")
    with pytest.raises(UserError, match="index.json is corrupt: it has no weight_map"):
        HFFolderSource(tmp_path)
    index.write_text(json.dumps({"weight_map": {"w": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(UserError, match=f"{tmp_path} lacks model-00001-of-00002.safetensors"):
        HFFolderSource(tmp_path)
    index.write_text(json.dumps({"weight_map": {"u": "model.safetensors"}}))
    with pytest.raises(
        UserError, match="model.safetensors has no tensor u, which model.safetensors.index.json puts there"
    ):
        HFFolderSource(tmp_path)


def llama_cpp_permute(weights, n_head):
    """LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py."""
    return (
        weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "pangu-embedded"])
def test_gguf_names_and_row_order(tmp_path, architecture):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((rows, 64)).astype(np.float32) for rows in (64, 32, 32))
    bias = rng.standard_normal(64).astype(np.float32)
    stored = (lambda w, heads: llama_cpp_permute(w, heads)) if architecture == "llama" else lambda w, heads: w
    q8 = gguf.GGMLQuantizationType.Q8_0
    tensors = {
        "token_embd.weight": rng.standard_normal((10, 64)).astype(np.float32),
        "blk.0.attn_q.weight": stored(q, 4),
        "blk.0.attn_q.bias": stored(bias, 4),
        "blk.0.attn_k.weight": quantized(stored(k, 2), q8),
        "blk.0.attn_v.weight": v,
    }
    names = {
        "model.embed_tokens.weight",
        *(
            "model.layers.0.self_attn." + name
            for name in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "v_proj.weight")
        ),
    }
    keys = {f"{architecture}__attention__head_count": 4, f"{architecture}__attention__head_count_kv": 2}
    source = open_weight_source(write_gguf(tmp_path / "m.gguf", tensors, architecture, **keys))
    assert isinstance(source, GGUFSource) and set(source.names()) == names
    prefix = "model.layers.0.self_attn."
    np.testing.assert_array_equal(source.load(prefix + "q_proj.weight"), q)
    np.testing.assert_array_equal(source.load_rows(prefix + "q_proj.weight", 5, 40), q[5:40])
    np.testing.assert_array_equal(source.load_rows(prefix + "q_proj.bias", 5, 40), bias[5:40])
    k8 = gguf.quants.dequantize(gguf.quants.quantize(k, q8), q8)
    np.testing.assert_array_equal(source.load(prefix + "k_proj.weight"), k8)
    np.testing.assert_array_equal(source.load(prefix + "v_proj.weight"), v)
    assert source.bits_per_weight(prefix + "k_proj.weight") == 8.5
    with pytest.raises(UserError, match="m.gguf has no tensor lm_head.weight"):
        source.shape("lm_head.weight")


def test_loaded_rows_are_ours_to_change(tmp_path):
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", {"output_norm.weight": np.ones(8, np.float32)}))
    source.load("model.norm.weight")[:] = 0
    assert source.load("model.norm.weight").sum() == 8


def test_a_tensor_without_a_counterpart_keeps_its_name(tmp_path):
    tensors = {name: np.ones(4, np.float32) for name in ("rope_freqs.weight", "blk.0.ffn_gate_inp.weight")}
    assert GGUFSource(write_gguf(tmp_path / "m.gguf", tensors)).names() == ["blk.0.ffn_gate_inp.weight"]


def test_gguf_metadata_that_contradicts_the_tensors(tmp_path):
    tensors = {"blk.0.attn_q.weight": np.ones((64, 8), np.float32)}
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", tensors, llama__attention__head_count=5))
    with pytest.raises(UserError, match=r"head_count = 5 does not divide the 64 rows of tensor .*q_proj.weight"):
        source.load("model.layers.0.self_attn.q_proj.weight")
    with pytest.raises(UserError, match="architecture 'unheard-of', which the gguf package does not know"):
        GGUFSource(write_gguf(tmp_path / "m.gguf", tensors, "unheard-of"))
    with pytest.raises(UserError, match="llama.block_count is 'two'"):
        GGUFSource(write_gguf(tmp_path / "m.gguf", tensors, llama__block_count="two"))


def test_smollm2_is_what_transformers_reads(smollm2_gguf):
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with torch.device("meta"):
        config = LlamaConfig(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3)
        model = LlamaForCausalLM(config)
    expected = load_gguf_checkpoint(str(smollm2_gguf), return_tensors=True, model_to_load=model)["tensors"]
    source = GGUFSource(smollm2_gguf)
    assert set(source.names()) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(source.load(name), tensor.numpy(), err_msg=name)
