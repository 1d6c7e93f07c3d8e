"""A GGUF file as a Hugging Face folder in bfloat16, for the engines that read nothing else."""

import json
from pathlib import Path

import ml_dtypes
from safetensors.numpy import save_file

from relax_models.config_gguf import config_from_gguf
from relax_models.tokenizer_files import write_tokenizer
from relax_models.weight_source import GGUFSource
from runtime.errors import UserError
from runtime.whole_file import replace_file

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_CONFIG = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps", "rope_theta", "max_position_embeddings"),
    "tie_word_embeddings",
)


def dequantized(source: Path, folder: Path) -> Path:
    """A folder below ``folder`` with the weights of ``source``, made once; its config.json is written last.

    UserError for a family that transformers has no class for in _ARCHITECTURES.
    """
    destination = folder / f"{source.stem}-bf16"
    config_path = destination / "config.json"
    if config_path.is_file() and config_path.stat().st_mtime >= source.stat().st_mtime:
        return destination
    weights, config = GGUFSource(source), config_from_gguf(source)
    if config.model_type not in _ARCHITECTURES or config.rope_scaling:
        raise UserError(f"{source}: no Hugging Face folder is made of this kind of model")
    destination.mkdir(parents=True, exist_ok=True)
    tensors = {name: weights.load(name).astype(ml_dtypes.bfloat16) for name in weights.names()}
    save_file(tensors, destination / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(weights.file, destination)
    values = {name: getattr(config, name) for name in _CONFIG}
    values |= {"architectures": [_ARCHITECTURES[config.model_type]], "dtype": "bfloat16", "hidden_act": "silu"}
    replace_file(config_path, lambda part: part.write_text(json.dumps(values, indent=1) + "\n"))
    return destination
