"""Settings as text, ``k=v;k=v`` as mlc_llm chat takes them: of sampling, and in a chat of the policy too."""

from __future__ import annotations

import json
from dataclasses import fields

from runtime.errors import UserError
from runtime.key_values import parse_key_values
from runtime.policy import RUNTIME_FIELDS, Policy
from runtime.sampling import SamplingParams

_POLICY_FIELDS = {field.name for field in fields(Policy)}


def apply_settings(params: SamplingParams, text: str) -> SamplingParams:
    """``params`` with the settings in ``text`` replaced; UserError names what is wrong.

    Several stop strings are separated by commas; an empty value or "none" takes a setting back to its default;
    logit_bias is a JSON object of token ids.
    """
    return params.changed(**{key: _value(key, value) for key, value in parse_key_values(text).items()})


def split_settings(text: str) -> tuple[str, str]:
    """The settings of sampling and those of the policy, each as ``k=v;k=v``; UserError names a key of neither."""
    sampling, policy = [], []
    for key, value in parse_key_values(text).items():
        if key in SamplingParams.model_fields:
            sampling.append(f"{key}={value}")
        elif key in _POLICY_FIELDS:
            policy.append(f"{key}={value}")
        else:
            names = ", ".join((*SamplingParams.model_fields, *RUNTIME_FIELDS))
            raise UserError(f"there is no setting {key}: choose from {names}")
    return ";".join(sampling), ";".join(policy)


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
