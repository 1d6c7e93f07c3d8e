"""Model configs from the metadata of a GGUF file, as llama.cpp's converters write it (keys: ggml's docs/gguf.md)."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from relax_models.config import ModelConfig
from relax_models.gguf_file import GGUFFile
from runtime.errors import UserError

_FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "pangu-embedded": "pangu_embedded"}
# The parameters that all of Llama 3.1, 3.2 and 3.3 share; only the factor differs.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def config_from_gguf(file: GGUFFile | Path | str) -> ModelConfig:
    """The config of a GGUF model; vocabulary size, biases and tied embeddings are read off the list of tensors.

    Raises UserError for a file that cannot be read, an unsupported architecture (with the list of supported ones) and a
    missing key.
    """
    file = file if isinstance(file, GGUFFile) else GGUFFile(file)
    architecture = file.architecture
    if architecture not in _FAMILIES:
        raise UserError(
            f"{file.path} holds a model of architecture {architecture!r}, which is not supported; supported "
            f"architectures: {', '.join(_FAMILIES)}."
        )

    def key(name: str, default: Any = None) -> Any:
        value = file.metadata.get(f"{architecture}.{name}", default)
        if value is None:
            raise UserError(f"{file.path} lacks {architecture}.{name} in its metadata; convert the model again.")
        return value

    if key("expert_count", 0):
        raise UserError(f"{file.path} holds a mixture-of-experts model, which is not supported; use a dense model.")
    hidden_size, heads = key("embedding_length"), key("attention.head_count")
    if not isinstance(heads, int) or heads <= 0:
        raise UserError(f"{file.path} has {heads!r} attention heads; the same number in every layer is supported.")
    head_dim = key("attention.key_length", hidden_size // heads)
    if key("rope.dimension_count", head_dim) != head_dim or key("attention.value_length", head_dim) != head_dim:
        raise UserError(f"{file.path} has heads that rotate in part or differ in size, which is not supported.")
    context_length = key("context_length")
    window = key("attention.sliding_window", 0) if architecture == "llama" else 0
    return ModelConfig(
        model_type=_FAMILIES[architecture],
        hidden_size=hidden_size,
        intermediate_size=key("feed_forward_length"),
        num_hidden_layers=key("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=key("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=_vocab_size(file),
        rms_norm_eps=_shortest(key("attention.layer_norm_rms_epsilon")),
        rope_theta=_shortest(key("rope.freq_base", 10000.0)),
        max_position_embeddings=context_length,
        tie_word_embeddings=_is_tied(file),
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        o_bias="blk.0.attn_output.bias" in file.tensors,
        rope_scaling=_rope_scaling(file, key, context_length),
        sliding_window=window or None,
    )


def _is_tied(file: GGUFFile) -> bool:
    """Whether the output projection is the embedding table: not in the file, or the same bytes again.

    Two tables of different types stay two (Qwen2.5-Coder's q4_k_m has Q5_0 and Q8_0), even if they were one once.
    """
    if not {"output.weight", "token_embd.weight"} <= set(file.tensors):
        return True
    output, table = file.tensors["output.weight"], file.tensors["token_embd.weight"]
    if (output.shape, output.type_id) != (table.shape, table.type_id):
        return False
    rows = [file.raw_rows(tensor.name) for tensor in (output, table)]
    same = all(np.array_equal(*(raw[i : i + 4096] for raw in rows)) for i in range(0, table.shape[0], 4096))
    file.drop_pages()
    return same


def _vocab_size(file: GGUFFile) -> int:
    if "token_embd.weight" not in file.tensors:
        raise UserError(f"{file.path} has no tensor token_embd.weight; give a GGUF file with a whole model.")
    return file.tensors["token_embd.weight"].shape[0]


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 for the 9.999999747378752e-06 that the file holds."""
    return float(str(np.float32(value)))


def _rope_scaling(file: GGUFFile, key, context_length: int) -> dict[str, Any] | None:
    prefix = f"{file.architecture}.rope.scaling."
    values = {name.removeprefix(prefix): file.metadata[name] for name in file.metadata if name.startswith(prefix)}
    kind = values.pop("type", "none")
    if "rope_freqs.weight" in file.tensors:
        return _recognize_llama3(file, _shortest(key("rope.freq_base", 10000.0)))
    if kind == "none":
        return None
    unknown = set(values) - {"factor", "original_context_length", "finetuned"}
    if kind not in ("linear", "yarn") or unknown:
        raise UserError(
            f"{file.path} scales RoPE by {kind!r} ({', '.join(sorted(values))}), which is not supported; supported: "
            "linear, yarn with factor and original_context_length, and the rope_freqs of Llama 3."
        )
    scaling = {"rope_type": kind, "factor": _shortest(key("rope.scaling.factor"))}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = key("rope.scaling.original_context_length", context_length)
    return scaling


def _recognize_llama3(file: GGUFFile, rope_theta: float) -> dict[str, Any]:
    """The llama3 scaling whose divisors the file holds in rope_freqs.weight, float32 [head_dim / 2].

    llama.cpp's LlamaModel.generate_extra_tensors writes no parameters, only frequency divisors: 1 for short waves, the
    factor for long ones, blended between.
    """
    divisors = file.dequantize("rope_freqs.weight", file.raw_rows("rope_freqs.weight"))[0]
    factor = _shortest(divisors.max())
    frequencies = rope_theta ** -(np.arange(len(divisors)) / len(divisors))
    waves_in_context = _LLAMA3["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    kept = np.clip((waves_in_context - low) / (high - low), 0.0, 1.0)
    if not np.allclose(divisors, 1.0 / (kept + (1.0 - kept) / factor), rtol=1e-4):
        raise UserError(f"{file.path} has rope_freqs other than those of Llama 3.1 to 3.3, which is not supported.")
    return {"rope_type": "llama3", "factor": factor} | _LLAMA3
