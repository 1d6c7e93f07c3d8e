"""The --overrides option: "context_window_size=4096;prefill_chunk_size=1024"."""

import difflib
import json
import math
from dataclasses import replace
from typing import Any

from relax_models.config import ModelConfig
from relax_models.config_hf import normalized_rope_scaling
from runtime.errors import UserError

_KEYS = ("context_window_size", "prefill_chunk_size", "max_batch_size", "rope_scaling")
# Qwen's model cards validate YaRN for contexts of up to four times the original one.
_LARGEST_YARN_FACTOR = 4


def with_overrides(config: ModelConfig, text: str) -> ModelConfig:
    """`config` with the settings in "key=value;key=value", as mlc_llm's --overrides.

    Keys: context_window_size, prefill_chunk_size, max_batch_size (positive integers), rope_scaling (a JSON object as in
    config.json, or null for none). The chunk never exceeds the context: it is shortened with it. A context longer than
    what a Qwen model was trained for switches YaRN on as its model card prescribes; for other models it is an error.

    Raises UserError naming the wrong key or value.
    """
    values = parse_overrides(text)
    if "rope_scaling" in values:
        scaling = normalized_rope_scaling(values["rope_scaling"] or {}, config.max_position_embeddings)
        # A scaling may be given for the longer context that stands beside it, so the check comes with both.
        values["rope_scaling"] = scaling
    elif values.get("context_window_size", 0) > config.context_limit:
        values["rope_scaling"] = _yarn_for(config, values["context_window_size"])
    context = values.get("context_window_size", config.context_window_size)
    values["prefill_chunk_size"] = min(values.get("prefill_chunk_size", config.prefill_chunk_size), context)
    return replace(config, **values)


def parse_overrides(text: str) -> dict[str, Any]:
    """The settings of "key=value;key=value"; UserError naming the wrong key or value."""
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UserError(f"override {part!r} has no value; write key=value, with ; between settings.")
        if name in values:
            raise UserError(f"override {name} is given twice; give it once.")
        values[name] = _value(name, value)
    return values


def _value(name: str, value: str) -> Any:
    if name == "sliding_window_size":
        raise UserError("override sliding_window_size is not supported: attention is over the whole context.")
    if name not in _KEYS:
        close = difflib.get_close_matches(name, _KEYS, n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise UserError(f"override {name!r} is unknown; the keys are {', '.join(_KEYS)}{hint}")
    if name == "rope_scaling":
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        if parsed is not None and not isinstance(parsed, dict):
            raise UserError(f"override rope_scaling is {value!r}; give a JSON object or null.")
        return parsed
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise UserError(f"override {name} is {value!r}; it must be a positive integer.")
    return int(value)


def _yarn_for(config: ModelConfig, context: int) -> dict[str, Any] | None:
    """The YaRN that stretches a Qwen model to `context` tokens; for any other model the scaling it has.

    Source: "Processing Long Texts" in the model cards of Qwen2.5-7B-Instruct and Qwen3-8B, which add
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768} to config.json.
    """
    if config.model_type not in ("qwen2", "qwen3") or config.rope_scaling or config.sliding_window:
        return config.rope_scaling
    original = config.max_position_embeddings
    if config.model_type == "qwen3" and original == 40960:
        original = 32768  # trained length; the rest of the 40960 is room for the prompt, says the card
    factor = math.ceil(context / original)
    if factor > _LARGEST_YARN_FACTOR:
        raise UserError(
            f"context_window_size {context} is more than {_LARGEST_YARN_FACTOR} times the {original} tokens this model "
            f"was trained for, beyond what Qwen validated YaRN for; ask for at most {_LARGEST_YARN_FACTOR * original}, "
            f'or say yourself how far to stretch: rope_scaling={{"rope_type": "yarn", "factor": {factor}.0}}.'
        )
    return {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}
