"""hf_sources against the tensor names that Hugging Face's models really have."""

import pytest
from reference import TINY_CONFIGS, named_weights, reference_model

from relax_models.registry import export_model
from relax_models.weight_names import hf_sources, is_redundant


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_every_checkpoint_tensor_is_used_once_and_shapes_agree(name):
    config = TINY_CONFIGS[name]
    weights = named_weights(reference_model(config, seed=0))
    used = []
    for parameter_name, parameter in export_model(config, "float32")[1]:
        sources = hf_sources(parameter_name, config)
        used += sources
        rows = sum(weights[source].shape[0] for source in sources)
        assert (rows, *weights[sources[0]].shape[1:]) == tuple(parameter.shape), parameter_name
    assert sorted(used) == sorted(weights)


def test_fused_parts_come_in_order():
    config = TINY_CONFIGS["qwen2-yarn"]
    assert hf_sources("model.layers.1.self_attn.qkv_proj.bias", config) == [
        f"model.layers.1.self_attn.{part}_proj.bias" for part in "qkv"
    ]
    assert hf_sources("model.layers.10.mlp.gate_up_proj.weight", config) == [
        "model.layers.10.mlp.gate_proj.weight",
        "model.layers.10.mlp.up_proj.weight",
    ]


def test_tied_output_projection_has_no_source():
    assert hf_sources("lm_head.weight", TINY_CONFIGS["qwen2-tied"]) == []
    assert hf_sources("lm_head.weight", TINY_CONFIGS["qwen2-yarn"]) == ["lm_head.weight"]


def test_redundant_tensors():
    tied, untied = TINY_CONFIGS["pangu-tied"], TINY_CONFIGS["pangu"]
    assert is_redundant("model.layers.3.self_attn.rotary_emb.inv_freq", untied)
    assert is_redundant("lm_head.weight", tied) and not is_redundant("lm_head.weight", untied)
    assert not is_redundant("model.embed_tokens.weight", tied)
