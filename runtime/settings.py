"""Sampling settings as text: the ``k=v;k=v`` of /set and --set, as mlc_llm chat takes it."""

from __future__ import annotations

import json

from runtime.errors import UserError
from runtime.sampling import SamplingParams


def apply_settings(params: SamplingParams, text: str) -> SamplingParams:
    """``params`` with the settings in ``text`` replaced; UserError names what is wrong.

    Several stop strings are separated by commas; an empty value or "none" takes a setting back to its default;
    logit_bias is a JSON object of token ids.
    """
    values = {}
    for setting in filter(None, map(str.strip, text.split(";"))):
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals:
            raise UserError(f"{setting} is no setting: write key=value, and ; between two of them")
        values[key] = _value(key, value)
    return params.changed(**values)


def _value(key: str, text: str) -> object:
    field = SamplingParams.model_fields.get(key)
    if field is not None and text.lower() in ("", "none"):
        return field.default
    if key == "stop":
        return tuple(text.split(","))
    if key == "logit_bias":
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise UserError(f'{text} is no logit_bias: write it as {{"token id": bias}}') from None
    return text
