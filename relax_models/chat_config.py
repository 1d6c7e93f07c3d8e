"""mlc-chat-config.json: what MLC's engine and this project's runtime read beside the weights."""

import json
from pathlib import Path
from typing import Any

from relax_models.config import ModelConfig
from relax_models.conv_template import conversation_template
from relax_models.tokenizer_files import FILES, TokenizerFacts
from runtime.artifact import CHAT_CONFIG_FILE, read_json
from runtime.errors import UserError
from runtime.policy import Policy
from runtime.whole_file import replace_file

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
    policy: Policy,
) -> dict[str, Any]:
    """The content of mlc-chat-config.json: MLC's fields, and "weight_format" and "policy".

    `generation` is the content of the model's generation_config.json ({} if there is none): sampling defaults and the
    ids of special tokens, where it has them.
    """
    ids = {f"{role}_token_id": generation.get(f"{role}_token_id") for role in ("pad", "bos", "eos")}
    for role in ("pad", "bos", "eos"):
        if ids[f"{role}_token_id"] is None:
            ids[f"{role}_token_id"] = tokenizer.token_id(role)
    eos = ids["eos_token_id"]
    model_config = config.to_mlc_dict()
    sizes = {
        "context_window_size": config.context_window_size,
        "sliding_window_size": _sliding_window_size(policy, config.context_window_size),
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
        "policy": policy.to_dict(),
    }


def _sliding_window_size(policy: Policy, context_window_size: int) -> int:
    """What MLC's engine is told so that a cache may compress itself.

    With a window its prefix cache neither forks nor rolls back a sequence, and marks each for the cache (mlc-llm
    cpp/serve/prefix_cache.cc, EnableSlidingWindowForSeq). A window as long as the context never slides. The model's own
    sliding_window bounds the context instead.
    """
    return -1 if policy.decode == "full" else context_window_size


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
    """Writes mlc-chat-config.json into `folder`, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    replace_file(folder / CHAT_CONFIG_FILE, lambda part: part.write_text(text + "\n", encoding="utf-8"))


def update_policy(folder: Path, policy: Policy) -> None:
    """Tells an existing model folder of the policy of a library that was compiled for it again.

    Does nothing if there is no such folder yet. UserError if its mlc-chat-config.json is damaged.
    """
    path = folder / CHAT_CONFIG_FILE
    if not path.is_file():
        return
    content = read_json(path, "make the model folder again with compile.py --weights")
    window = {"sliding_window_size": _sliding_window_size(policy, content["context_window_size"])}
    content |= window | {"model_config": content["model_config"] | window, "policy": policy.to_dict()}
    write_chat_config(folder, content)
