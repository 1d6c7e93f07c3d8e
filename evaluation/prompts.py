"""Texts of a row to token ids."""

from __future__ import annotations

from evaluation.rows import Row
from runtime.tokenizer import Tokenizer

_ANSWER = "\N{OBJECT REPLACEMENT CHARACTER}answer\N{OBJECT REPLACEMENT CHARACTER}"


def prompt_ids(tokenizer: Tokenizer, row: Row) -> list[int]:
    """Token ids up to where the answer begins. A model without a chat template gets every prompt as it is."""
    if row.mode == "chat" and tokenizer.has_chat_template:
        return tokenizer.encode_chat([{"role": "user", "content": row.prompt}])
    return tokenizer.encode(row.prompt)


def answer_ids(tokenizer: Tokenizer, answer: str) -> list[int]:
    """Token ids of an answer after a prompt."""
    return tokenizer.encode(answer, add_special_tokens=False)


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
