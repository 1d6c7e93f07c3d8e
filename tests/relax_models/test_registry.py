"""The exported functions: names, argument types and symbolic sizes as MLC's engine and the passes expect them."""

import json

import pytest
from reference import TINY_CONFIGS
from tvm import relax

from relax_models.registry import MODELS, export_model

# name -> sizes of the first argument and of the first result
FUNCTIONS = {
    "embed": (["seq_len"], ["seq_len", 256]),
    "prefill": ([1, "seq_len", 256], [1, 1, 97]),
    "decode": ([1, 1, 256], [1, 1, 97]),
    "batch_prefill": ([1, "seq_len", 256], [1, "batch_size", 97]),
    "batch_decode": (["batch_size", 1, 256], ["batch_size", 1, 97]),
    "batch_verify": ([1, "seq_len", 256], [1, "seq_len", 97]),
}


def sizes(tensor_type) -> list[int | str]:
    return [size.name if hasattr(size, "name") else int(size) for size in tensor_type.shape]


def relax_functions(mod):
    return {var.name_hint: func for var, func in mod.functions_items() if isinstance(func, relax.Function)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_signatures(dtype):
    mod, parameters = export_model(TINY_CONFIGS["llama"], dtype)
    functions = relax_functions(mod)
    assert set(functions) == {*FUNCTIONS, "create_paged_kv_cache"}
    for name, (shape, result_shape) in FUNCTIONS.items():
        function = functions[name]
        argument = function.params[0].ty
        assert sizes(argument) == shape, name
        assert argument.dtype == ("int32" if name == "embed" else dtype)
        packed = function.params[-1].ty
        assert [tuple(sizes(field)) for field in packed.fields] == [tuple(p.shape) for _, p in parameters]
        assert {str(field.dtype) for field in packed.fields} == {dtype}
        result = function.ret_ty if name == "embed" else function.ret_ty.fields[0]
        assert sizes(result) == result_shape, name
        assert result.dtype == (dtype if name == "embed" else "float32")
        assert name == "embed" or isinstance(function.ret_ty.fields[1], relax.AnyType)
    names = [param.name for param in functions["batch_prefill"].params]
    assert names == ["input_embeds", "logit_positions", "paged_kv_cache", "packed_params"]
    assert sizes(functions["batch_prefill"].params[1].ty) == ["batch_size"]


def test_cache_creation_carries_the_attention():
    config = TINY_CONFIGS["qwen3-yarn"]
    mod, _ = export_model(config, "bfloat16")
    function = mod["create_paged_kv_cache"]
    call = function.body.blocks[0].bindings[0].value
    assert call.args[0].global_symbol == "mlc.create_paged_kv_cache_generic"
    kind, shape, partition, *rest = call.args[1:]
    assert kind.value == "mha"
    assert [size.name for size in shape.values] == [
        *("max_batch_size", "max_total_seq_len", "prefill_chunk_size", "page_size", "support_sliding_window")
    ]
    assert [int(size) for size in partition.values] == [0, 1]
    values = [argument.value for argument in rest]
    # layers, heads of q and kv, head_dim of q/k and v, two of MLA, rope mode and scale, theta, scaling, factors,
    # rotary dim, disaggregation, dtype
    assert values[:9] == [1, 4, 2, 80, 80, 0, 0, 1, 1]
    assert values[9] == config.rope_theta
    assert json.loads(values[10]) == config.rope_scaling
    assert values[11:] == [0, 80, 0, "bfloat16"]
    assert len(function.params) == 5


def test_parameter_names_of_a_layer():
    _, parameters = export_model(TINY_CONFIGS["qwen3-yarn"], "float32")
    assert [name for name, _ in parameters] == [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.k_norm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.mlp.gate_up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ]


def test_every_family_has_a_tiny_config():
    assert {config.model_type for config in TINY_CONFIGS.values()} == set(MODELS)


def test_dtype_must_be_known():
    with pytest.raises(ValueError, match="float64"):
        export_model(TINY_CONFIGS["llama"], "float64")
