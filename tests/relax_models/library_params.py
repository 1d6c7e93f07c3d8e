"""The "params" of a library's metadata, made from a source instead of a compiled library."""

from relax_models.weight_names import hf_sources
from tir_kernels.weight_format import weight_format

_LAYER = (
    *(f"self_attn.{module}" for module in ("qkv_proj.weight", "qkv_proj.bias", "o_proj.weight", "o_proj.bias")),
    *("mlp.gate_up_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight", "post_attention_layernorm.weight"),
)


def library_params(source, config, quantization):
    """Entries {name, shape, dtype, logical_shape, format} of the parameters that `source` has tensors for."""
    names = ["model.embed_tokens.weight", "model.norm.weight"] + ["lm_head.weight"] * (not config.tie_word_embeddings)
    names += [f"model.layers.{i}.{name}" for i in range(config.num_hidden_layers) for name in _LAYER]
    available = set(source.names())
    return [
        _entry(source, name, config, quantization) for name in names if available.issuperset(hf_sources(name, config))
    ]


def _entry(source, name, config, quantization):
    shapes = [source.shape(part) for part in hf_sources(name, config)]
    logical = [sum(shape[0] for shape in shapes), *shapes[0][1:]]
    dtype = "float32" if quantization == "q0f32" else "bfloat16"
    entry = {"name": name, "shape": logical, "dtype": dtype, "logical_shape": logical, "format": "plain"}
    if len(logical) == 2:
        packed = weight_format(quantization)
        entry |= {"shape": list(packed.packed_shape(*logical)), "dtype": packed.packed_dtype, "format": packed.name}
    return entry
