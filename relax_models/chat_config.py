"""mlc-chat-config.json: what MLC's engine and this project's runtime read beside the weights."""

import json
from pathlib import Path
from typing import Any

from relax_models.config import ModelConfig
from relax_models.conv_template import conversation_template
from relax_models.tokenizer_files import FILES, TokenizerFacts
from runtime.errors import UserError

# MLC_CHAT_CONFIG_VERSION and MLC_CHAT_SYSTEM_DEFAULT of mlc_llm/protocol/mlc_chat_config.py.
_VERSION = "0.1.0"
_SAMPLING_DEFAULTS = {
    "temperature": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "top_p": 1.0,
}


def chat_config(
    config: ModelConfig,
    quantization: str,
    weight_format: str,
    tokenizer: TokenizerFacts,
    generation: dict[str, Any],
) -> dict[str, Any]:
    """The content of mlc-chat-config.json: MLC's fields, and "weight_format".

    `generation` is the content of the model's generation_config.json ({} if there is none): sampling defaults and the
    ids of special tokens, where it has them.
    """
    ids = {f"{role}_token_id": generation.get(f"{role}_token_id") for role in ("pad", "bos", "eos")}
    for role in ("pad", "bos", "eos"):
        if ids[f"{role}_token_id"] is None:
            ids[f"{role}_token_id"] = tokenizer.token_id(role)
    eos = ids["eos_token_id"]
    model_config = config.to_mlc_dict()
    # The model's own sliding_window bounds the context instead; the cache keeps everything.
    sizes = {
        "context_window_size": config.context_window_size,
        "sliding_window_size": -1,
        "prefill_chunk_size": config.prefill_chunk_size,
        "attention_sink_size": -1,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
    }
    return {
        "version": _VERSION,
        "model_type": config.model_type,
        "quantization": quantization,
        "weight_format": weight_format,
        "model_config": model_config | sizes,
        "vocab_size": config.vocab_size,
        "active_vocab_size": min(tokenizer.vocab_size, config.vocab_size),
        **sizes,
        **{name: _sampling(generation, name, default) for name, default in _SAMPLING_DEFAULTS.items()},
        "tokenizer_files": list(FILES),
        "tokenizer_info": tokenizer.info,
        "conv_template": conversation_template(
            tokenizer.chat_template,
            tokenizer.special_tokens,
            tokenizer.special_ids,
            tokenizer.add_bos_token,
            eos if isinstance(eos, list) else [] if eos is None else [eos],
        ),
        **ids,
        "model_task": "chat",
        "embedding_metadata": None,
    }


def _sampling(generation: dict[str, Any], name: str, default: float) -> float:
    value = generation.get(name)
    return default if value is None else value


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The content of a Hugging Face folder's generation_config.json, {} if it has none. UserError if it is corrupt."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); get it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object; get it again.")
    return content


def write_chat_config(folder: Path, content: dict[str, Any]) -> None:
    """Writes mlc-chat-config.json into `folder`."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (folder / "mlc-chat-config.json").write_text(text + "\n", encoding="utf-8")
