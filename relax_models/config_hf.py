"""Model configs from Hugging Face's config.json and from MLC's mlc-chat-config.json."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from relax_models.config import ROPE_SCALING_TYPES, ModelConfig
from runtime.errors import UserError

Facts = Mapping[str, Any]


def _llama_biases(hf: Facts) -> tuple[bool, bool]:
    return bool(hf.get("attention_bias", False)), bool(hf.get("attention_bias", False))


def _pangu_biases(hf: Facts) -> tuple[bool, bool]:
    # PanguEmbeddedConfig's own default is True.
    return bool(hf.get("bias", True)), bool(hf.get("bias", True))


# model_type of config.json -> (our model_type, (qkv_bias, o_bias) of a config). qwen2 and mistral fix their biases.
_FAMILIES: dict[str, tuple[str, Callable[[Facts], tuple[bool, bool]]]] = {
    "llama": ("llama", _llama_biases),
    "mistral": ("mistral", lambda hf: (False, False)),
    "qwen2": ("qwen2", lambda hf: (True, False)),
    "qwen3": ("qwen3", _llama_biases),
    "PanguEmbedded": ("pangu_embedded", _pangu_biases),
}


def config_from_hf(hf: Facts) -> ModelConfig:
    """The config in a parsed config.json, of transformers 4 or 5.

    Raises UserError that names the missing field or what is not supported.
    """
    model_type = hf.get("model_type")
    if model_type not in _FAMILIES:
        supported = ", ".join(_FAMILIES)
        raise UserError(f"Models of type {model_type!r} are not supported; supported model types: {supported}.")
    for architecture in hf.get("architectures") or []:
        if not architecture.endswith("ForCausalLM"):
            raise UserError(f"{architecture} is not supported; use a model for text generation (a ...ForCausalLM).")
    family, biases = _FAMILIES[model_type]
    # Qwen's configs hold a window that is in force only with use_sliding_window; Llama has none.
    in_force = family == "mistral" or (family in ("qwen2", "qwen3") and hf.get("use_sliding_window"))
    return _config(hf, family, biases(hf), hf.get("sliding_window") if in_force else None)


def config_from_hf_folder(path: Path | str) -> ModelConfig:
    """The config of a Hugging Face model folder (its config.json). UserError when it has none or it cannot be read."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give a Hugging Face model folder with a config.json.")
    file = path / "config.json"
    if not file.is_file():
        raise UserError(f"{path} has no config.json; give a Hugging Face model folder.")
    return config_from_hf(_parse(file))


def config_from_mlc(mlc: Facts) -> ModelConfig:
    """The config in mlc-chat-config.json, given as the whole parsed file or as its "model_config".

    Reads what `ModelConfig.to_mlc_dict` writes and what mlc_llm writes for the same families. UserError as
    `config_from_hf`.
    """
    facts = dict(mlc.get("model_config", mlc))
    facts.setdefault("model_type", mlc.get("model_type"))
    all_biases = dict(_FAMILIES.values())
    family = facts["model_type"]
    if family not in all_biases:
        raise UserError(
            f"MLC models of type {family!r} are not supported; supported model types: {', '.join(all_biases)}."
        )
    # mlc_llm's Llama calls it position_embedding_base, and drops max_position_embeddings once it has the context.
    facts.setdefault("rope_theta", facts.get("position_embedding_base"))
    facts.setdefault("max_position_embeddings", facts.get("context_window_size"))
    qkv_bias, o_bias = all_biases[family](facts)
    biases = (facts.get("qkv_bias", qkv_bias), facts.get("o_bias", o_bias))
    window = facts.get("sliding_window_size", -1)  # mlc_llm's name, with -1 for none
    run_time = ("context_window_size", "prefill_chunk_size", "max_batch_size")
    return _config(
        facts,
        family,
        biases,
        facts.get("sliding_window", window if window > 0 else None),
        **{name: facts[name] for name in run_time if name in facts},
    )


def _config(
    facts: Facts, family: str, biases: tuple[bool, bool], sliding_window: int | None, **run_time: int
) -> ModelConfig:
    activation = facts.get("hidden_act", "silu")
    if activation != "silu":
        raise UserError(f"hidden_act {activation!r} is not supported; the supported activation is silu.")
    if facts.get("mlp_bias"):
        raise UserError("mlp_bias is not supported; use a model whose feed-forward layers have no bias.")
    rope_theta, rope_scaling = _rope(facts, family)
    return ModelConfig(
        model_type=family,
        hidden_size=_required(facts, "hidden_size"),
        intermediate_size=_required(facts, "intermediate_size"),
        num_hidden_layers=_required(facts, "num_hidden_layers"),
        num_attention_heads=_required(facts, "num_attention_heads"),
        num_key_value_heads=_num_key_value_heads(facts, family),
        head_dim=_head_dim(facts, family),
        vocab_size=_required(facts, "vocab_size"),
        rms_norm_eps=_required(facts, "rms_norm_eps"),
        rope_theta=rope_theta,
        max_position_embeddings=_required(facts, "max_position_embeddings"),
        tie_word_embeddings=bool(facts.get("tie_word_embeddings", False)),
        qkv_bias=biases[0],
        o_bias=biases[1],
        rope_scaling=rope_scaling,
        sliding_window=sliding_window,
        **run_time,
    )


def _required(facts: Facts, name: str) -> Any:
    if facts.get(name) is None:
        raise UserError(f"The model's config lacks {name}; add it.")
    return facts[name]


def _num_key_value_heads(facts: Facts, family: str) -> int:
    if family == "llama" and not facts.get("num_key_value_heads"):
        return _required(facts, "num_attention_heads")  # configs older than grouped-query attention
    return _required(facts, "num_key_value_heads")


def _head_dim(facts: Facts, family: str) -> int:
    if facts.get("head_dim"):
        return facts["head_dim"]
    if family == "qwen3":
        return 128  # transformers' default; Qwen3 does not derive it from hidden_size
    heads, hidden_size = _required(facts, "num_attention_heads"), _required(facts, "hidden_size")
    if not (isinstance(heads, int) and isinstance(hidden_size, int) and heads > 0 and hidden_size % heads == 0):
        raise UserError(
            f"hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({heads}) in the model's config; "
            "add head_dim."
        )
    return hidden_size // heads


def _rope(facts: Facts, family: str) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling). transformers 5 writes both into rope_parameters, older versions rope_theta and rope_scaling."""
    rope = facts.get("rope_parameters") or facts.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise UserError(f"rope_scaling is {rope!r} in the model's config; it must be an object or null.")
    rope = dict(rope)
    rope_theta = rope.pop("rope_theta", facts.get("rope_theta"))
    if rope_theta is None:
        if family == "pangu_embedded":
            raise UserError("The model's config lacks rope_theta; add it.")
        rope_theta = 10000.0  # transformers' default, which configs of 2023 rely on
    rotated = rope.pop("partial_rotary_factor", facts.get("partial_rotary_factor")) or 1.0
    if rotated != 1.0:
        raise UserError(f"partial_rotary_factor {rotated} is not supported; use a model that rotates whole heads.")
    if isinstance(rope_theta, int):
        rope_theta = float(rope_theta)  # config.json has 1000000 or 1000000.0
    return rope_theta, normalized_rope_scaling(rope, facts.get("max_position_embeddings"))


def normalized_rope_scaling(rope: Facts, max_position_embeddings: int | None) -> dict[str, Any] | None:
    """`rope` with "rope_type" and only the parameters of that type, unset ones dropped; None for the plain type.

    The older key "type" is understood. YaRN without original_max_position_embeddings gets max_position_embeddings.
    """
    scaling = {name: value for name, value in rope.items() if value is not None}
    old_type = scaling.pop("type", "default")
    rope_type = scaling.pop("rope_type", old_type)
    if rope_type == "default":
        return None
    if rope_type not in ROPE_SCALING_TYPES:
        return {"rope_type": rope_type}
    if rope_type == "yarn" and max_position_embeddings is not None:
        scaling.setdefault("original_max_position_embeddings", max_position_embeddings)
    required, optional = ROPE_SCALING_TYPES[rope_type]
    return {"rope_type": rope_type} | {name: scaling[name] for name in required + optional if name in scaling}


def _parse(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); get it again.") from None
    if not isinstance(facts, dict):
        raise UserError(f"{file} does not hold a JSON object; get it again.")
    return facts
