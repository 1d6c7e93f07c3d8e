"""A prompt of exactly so many tokens of a real text, with needles at chosen distances from its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.hidden_numbers import random_numbers
from benchmarks.source_text import CHARACTERS_PER_TOKEN
from runtime.errors import UserError
from runtime.tokenizer import Tokenizer

# Distances within the trained range, as shares of it: 1k, 4k, 8k, 16k, 24k and 31k of 32k. The last leaves room for the
# question and the answer.
_NEAR = (1 / 32, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 31 / 32)
# Distances beyond it, as shares of the prompt.
_FAR = (1 / 2, 9 / 10)
# Things unlike each other: a small model tells numbers of the same thing under several names apart badly, even with
# dense attention, and what is asked here is how far back it finds one.
_THINGS = (
    "phone number of the bakery",
    "code of the bank vault",
    "weight of the blue whale",
    "price of the old violin",
    "population of the island",
    "height of the lighthouse",
    "serial number of the clock",
    "year of the great flood",
)
_INTRODUCTION = "Facts are hidden within the following text. Memorize them. I will ask about them afterwards."
_LINE_SEARCH = 128  # tokens in which the end of a line is looked for
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Needle:
    """``distance``: tokens from the needle's first one to the end of the prompt."""

    key: str
    number: str
    distance: int


def needle(key: str, number: str) -> str:
    """The line that is hidden."""
    return f"The {key} is {number}."


class LongText:
    """``ids`` are the prompt, which ends where a question is asked; ``needles`` go from its end to its beginning.

    ``copies``: how many times the text is in the prompt, 1 or less for a text that need not be repeated.
    """

    def __init__(self, tokenizer: Tokenizer, text: str, tokens: int, trained: int, seed: int = 0) -> None:
        """``trained``: the longest distance that the model saw in its training. UserError if there is no room."""
        self._tokenizer = tokenizer
        turn = [{"role": "user", "content": _MARK}]
        rendered = tokenizer.render_chat(turn) if tokenizer.has_chat_template else _MARK
        begin, _, self._end_of_turn = rendered.partition(_MARK)
        head = _begin_of_text(tokenizer) + self._encode(f"{begin}{_INTRODUCTION}\n\n")
        distances = sorted({round(share * trained) for share in _NEAR} | set(_far(tokens, trained)))
        distances = [distance for distance in distances if distance <= 0.95 * tokens]
        planted = list(zip(_THINGS, random_numbers(np.random.default_rng(seed), len(distances))))
        lines = [self._encode(needle(key, number) + "\n") for key, number in planted]
        room = tokens - len(head) - sum(map(len, lines))
        if not distances or room < tokens // 2:
            raise UserError(f"--tokens {tokens} is too few for needles in a text: give more")
        body, self.copies = self._text_ids(text, room)
        pieces, behind, end = [], 0, room  # from the end of the prompt on
        self.needles = []
        for (key, number), line, distance in zip(planted, lines, distances, strict=True):
            cut = self._line_end(body, min(room - (distance - behind - len(line)), end))
            pieces += [body[cut:end], line]
            behind += len(line)
            end = cut
            self.needles.append(Needle(key, number, room - cut + behind))
        pieces += [body[:end], head]
        self.ids: list[int] = [token_id for piece in reversed(pieces) for token_id in piece]

    def question_ids(self, key: str) -> list[int]:
        """What follows the prompt: the question for the number of ``key``, up to where the answer begins."""
        question = f"What is the {key} mentioned in the text? Give the number only."
        return self._encode(f"\n\n{question}{self._end_of_turn}")

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _text_ids(self, text: str, count: int) -> tuple[list[int], float]:
        """The first ``count`` ids of the text, again from its beginning where it ends, and how many copies that is."""
        ids = self._encode(text[: count * CHARACTERS_PER_TOKEN])
        if not ids:
            raise UserError("the text is empty: give another one with --text")
        return (ids * -(-count // len(ids)))[:count], count / len(ids)

    def _line_end(self, ids: list[int], cut: int) -> int:
        """The last place before ``cut`` where a line ends, ``cut`` itself if there is none near it."""
        for place in range(cut, max(cut - _LINE_SEARCH, 0), -1):
            if self._tokenizer.decode([ids[place - 1]]).endswith("\n"):
                return place
        return cut


def _far(tokens: int, trained: int) -> Iterator[int]:
    return (round(share * tokens) for share in _FAR if share * tokens > trained)


def _begin_of_text(tokenizer: Tokenizer) -> list[int]:
    """The tokens that the tokenizer puts before a conversation whose template does not write them."""
    if not tokenizer.has_chat_template:
        return tokenizer.encode("")
    turn = [{"role": "user", "content": _MARK}]
    ids = tokenizer.encode_chat(turn)
    rendered = tokenizer.encode(tokenizer.render_chat(turn), add_special_tokens=False)
    return ids[: len(ids) - len(rendered)]
