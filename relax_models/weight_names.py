"""Which tensors of a Hugging Face checkpoint make up each parameter. The same for all families of relax_models."""

from relax_models.config import ModelConfig

# Parameter of ours -> the parts it is made of, one after the other along axis 0.
_FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}

_CODES_AND_SCALES = (".q_weight", ".q_scale")  # both are made of ".weight"


def stored_names(names: list[str], model_type: str, weight_format: str) -> list[str]:
    """The names of a model's parameters in its weight files.

    In MLC's own layouts ("mlc") they are those of `mlc_llm convert_weight`, whose Qwen models call the fused q, k and v
    otherwise.
    """
    if weight_format == "mlc" and model_type in ("qwen2", "qwen3"):
        return [name.replace(".qkv_proj.", ".c_attn.") for name in names]
    return names


def hf_sources(name: str, config: ModelConfig) -> list[str]:
    """Names of the Hugging Face tensors whose concatenation along axis 0 is the parameter `name`: weight, bias, or the
    codes or scales of a quantized weight.

    Empty for lm_head.weight of a model with tied embeddings, which has no such parameter.
    """
    for ending in _CODES_AND_SCALES:
        if name.endswith(ending):
            name = name.removesuffix(ending) + ".weight"
    if name == "lm_head.weight" and config.tie_word_embeddings:
        return []
    for fused, parts in _FUSED.items():
        if f".{fused}." in name:
            return [name.replace(fused, part) for part in parts]
    return [name]


def is_redundant(hf_name: str, config: ModelConfig) -> bool:
    """Whether a checkpoint may hold this tensor although no parameter needs it.

    That is RoPE's frequencies, which are recomputed (Llama 2, openPangu 7B), and the copy of a tied embedding table.
    """
    return hf_name.endswith(".rotary_emb.inv_freq") or (hf_name == "lm_head.weight" and config.tie_word_embeddings)
