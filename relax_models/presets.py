"""Models known by name: a preset is a config, to compile without the model at hand.

The numbers are those of the published config.json of the instruct models. Each was compared with that file as stored
copies on the Hugging Face hub quote it, except these, of which no such copy was found and which were checked otherwise:

- qwen2.5-coder-0.5b: the metadata of a GGUF file of Qwen2.5-Coder-0.5B-Instruct. It stores an output table of its own;
  that the embeddings are tied is from table 1 of the Qwen2.5-Coder report, https://arxiv.org/abs/2409.12186
- qwen2.5-coder-1.5b, qwen2.5-coder-7b, qwen3-4b: the config.json of fine-tuned and quantized descendants
- qwen3-1.7b: a training recipe (scripts/models/qwen3-1.7B.sh of the slime project) and the published parameter count;
  the tied embeddings follow from these two
- pangu-1b: the config.json of version 1.0; version 1.1 has the same layers and tensors by its GGUF file
"""

import difflib
from dataclasses import dataclass
from typing import Any

from relax_models.config import ModelConfig
from relax_models.config_hf import config_from_hf
from runtime.errors import UserError


@dataclass(frozen=True)
class Preset:
    """name on the command line, name in file names ("Qwen2.5-0.5B-Instruct"), hub id of the weights, and the config."""

    name: str
    display_name: str
    hub_id: str
    config: ModelConfig


def _sizes(hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


def _qwen2(sizes: dict, tied: bool, vocab_size: int = 151936) -> dict[str, Any]:
    return sizes | {
        "model_type": "qwen2",
        "vocab_size": vocab_size,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": tied,
    }


def _qwen3(sizes: dict, tied: bool) -> dict[str, Any]:
    return sizes | {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 40960,
        "head_dim": 128,
        "tie_word_embeddings": tied,
    }


def _llama3(sizes: dict, factor: float, tied: bool) -> dict[str, Any]:
    return sizes | {
        "model_type": "llama",
        "vocab_size": 128256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "max_position_embeddings": 131072,
        "tie_word_embeddings": tied,
    }


def _smollm2(sizes: dict, rope_theta: float) -> dict[str, Any]:
    return sizes | {
        "model_type": "llama",
        "vocab_size": 49152,
        "rms_norm_eps": 1e-5,
        "rope_theta": rope_theta,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }


def _pangu(sizes: dict, rope_theta: float, tied: bool) -> dict[str, Any]:
    return sizes | {
        "model_type": "PanguEmbedded",
        "bias": True,
        "vocab_size": 153376,
        "rms_norm_eps": 1e-5,
        "rope_theta": rope_theta,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": tied,
    }


_QWEN2_0_5B, _QWEN2_1_5B, _QWEN2_7B = (
    _sizes(896, 4864, 24, 14, 2),
    _sizes(1536, 8960, 28, 12, 2),
    _sizes(3584, 18944, 28, 28, 4),
)

# name -> (organization on the hub, display name, config.json)
_TABLE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2.5-0.5b": ("Qwen", "Qwen2.5-0.5B-Instruct", _qwen2(_QWEN2_0_5B, tied=True)),
    "qwen2.5-1.5b": ("Qwen", "Qwen2.5-1.5B-Instruct", _qwen2(_QWEN2_1_5B, tied=True)),
    "qwen2.5-3b": ("Qwen", "Qwen2.5-3B-Instruct", _qwen2(_sizes(2048, 11008, 36, 16, 2), tied=True)),
    "qwen2.5-7b": ("Qwen", "Qwen2.5-7B-Instruct", _qwen2(_QWEN2_7B, tied=False, vocab_size=152064)),
    "qwen2.5-coder-0.5b": ("Qwen", "Qwen2.5-Coder-0.5B-Instruct", _qwen2(_QWEN2_0_5B, tied=True)),
    "qwen2.5-coder-1.5b": ("Qwen", "Qwen2.5-Coder-1.5B-Instruct", _qwen2(_QWEN2_1_5B, tied=True)),
    "qwen2.5-coder-7b": ("Qwen", "Qwen2.5-Coder-7B-Instruct", _qwen2(_QWEN2_7B, tied=False, vocab_size=152064)),
    "qwen3-0.6b": ("Qwen", "Qwen3-0.6B", _qwen3(_sizes(1024, 3072, 28, 16, 8), tied=True)),
    "qwen3-1.7b": ("Qwen", "Qwen3-1.7B", _qwen3(_sizes(2048, 6144, 28, 16, 8), tied=True)),
    "qwen3-4b": ("Qwen", "Qwen3-4B", _qwen3(_sizes(2560, 9728, 36, 32, 8), tied=True)),
    "qwen3-8b": ("Qwen", "Qwen3-8B", _qwen3(_sizes(4096, 12288, 36, 32, 8), tied=False)),
    "llama-3.2-1b": ("meta-llama", "Llama-3.2-1B-Instruct", _llama3(_sizes(2048, 8192, 16, 32, 8), 32.0, tied=True)),
    "llama-3.2-3b": ("meta-llama", "Llama-3.2-3B-Instruct", _llama3(_sizes(3072, 8192, 28, 24, 8), 32.0, tied=True)),
    "llama-3.1-8b": ("meta-llama", "Llama-3.1-8B-Instruct", _llama3(_sizes(4096, 14336, 32, 32, 8), 8.0, tied=False)),
    "smollm2-135m": ("HuggingFaceTB", "SmolLM2-135M-Instruct", _smollm2(_sizes(576, 1536, 30, 9, 3), 100000.0)),
    "smollm2-360m": ("HuggingFaceTB", "SmolLM2-360M-Instruct", _smollm2(_sizes(960, 2560, 32, 15, 5), 100000.0)),
    "smollm2-1.7b": ("HuggingFaceTB", "SmolLM2-1.7B-Instruct", _smollm2(_sizes(2048, 8192, 24, 32, 32), 130000.0)),
    "pangu-1b": (
        "FreedomIntelligence",
        "openPangu-Embedded-1B-V1.1",
        _pangu(_sizes(1536, 6144, 26, 12, 6), 4000000.0, tied=True),
    ),
    "pangu-7b": (
        "FreedomIntelligence",
        "openPangu-Embedded-7B-V1.1",
        _pangu(_sizes(4096, 12800, 34, 32, 8), 16000000.0, tied=False),
    ),
}
_TABLE["qwen"] = _TABLE["qwen2.5-0.5b"]

PRESETS: dict[str, Preset] = {
    name: Preset(name, display_name, f"{organization}/{display_name}", config_from_hf(hf))
    for name, (organization, display_name, hf) in _TABLE.items()
}


def preset(name: str) -> Preset:
    """The preset of that name, in any case. UserError with close matches, or all names, for an unknown one."""
    if name.lower() in PRESETS:
        return PRESETS[name.lower()]
    close = difflib.get_close_matches(name.lower(), PRESETS, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"the presets are {', '.join(PRESETS)}."
    raise UserError(f"There is no model {name!r}: it is neither a preset nor an existing path; {hint}")
