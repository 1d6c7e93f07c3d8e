"""Which tensors of a Hugging Face checkpoint make up each parameter. The same for all families of relax_models."""

from relax_models.config import ModelConfig

# Parameter of ours -> the parts it is made of, one after the other along axis 0.
_FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


def hf_sources(name: str, config: ModelConfig) -> list[str]:
    """Names of the Hugging Face tensors whose concatenation along axis 0 is the parameter `name`, weight or bias.

    Empty for lm_head.weight of a model with tied embeddings, which has no such parameter.
    """
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
