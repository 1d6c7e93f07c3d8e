"""Settings as text: ``k=v;k=v``, as mlc_llm chat takes it after /set."""

from __future__ import annotations

from runtime.errors import UserError


def parse_key_values(text: str) -> dict[str, str]:
    """Keys and values, stripped, in the order written; UserError if a part has no ``=`` or a key comes twice."""
    values: dict[str, str] = {}
    for setting in filter(None, map(str.strip, text.split(";"))):
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals:
            raise UserError(f"{setting} is no setting: write key=value, and ; between two of them")
        if key in values:
            raise UserError(f"{key} is set twice: set it once")
        values[key] = value
    return values
