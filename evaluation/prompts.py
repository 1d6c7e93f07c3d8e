"""Texts of a row to token ids."""

from __future__ import annotations

from evaluation.rows import Row
from runtime.tokenizer import Tokenizer

_ANSWER = "\N{OBJECT REPLACEMENT CHARACTER}answer\N{OBJECT REPLACEMENT CHARACTER}"


def prompt_ids(tokenizer: Tokenizer, row: Row) -> list[int]:
    """Token ids up to where the answer begins. A model without a chat template gets every prompt as it is.

    The last space of a raw prompt is left to the answer: the tokens of words begin with their space, and after a
    space that stands alone a model sees text that it has hardly met.
    """
    if _as_chat(tokenizer, row):
        return tokenizer.encode_chat([{"role": "user", "content": row.prompt}])
    return tokenizer.encode(row.prompt.removesuffix(" "))


def answer_ids(tokenizer: Tokenizer, row: Row) -> list[int]:
    """Token ids of the first reference answer after the prompt."""
    space = " " if not _as_chat(tokenizer, row) and row.prompt.endswith(" ") else ""
    return tokenizer.encode(space + row.answers[0], add_special_tokens=False)


def _as_chat(tokenizer: Tokenizer, row: Row) -> bool:
    return row.mode == "chat" and tokenizer.has_chat_template


def letter_ids(tokenizer: Tokenizer, letters: str) -> list[int]:
    """The token of each letter at the beginning of an answer."""
    return [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in letters]


def second_turn_ids(tokenizer: Tokenizer, row: Row) -> list[int]:
    """What follows the tokens of the first answer: its end, the second question, the beginning of an answer.

    Only the template knows how turns are joined: it is rendered with a mark in the place of the first answer.
    """
    messages = [
        {"role": "user", "content": row.prompt},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": row.second.text},
    ]
    rest = tokenizer.render_chat(messages).rpartition(_ANSWER)[2]
    return tokenizer.encode(rest, add_special_tokens=False)
