"""A text to hide things in, of which pieces of any length are taken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from runtime.errors import UserError

CountTokens = Callable[[str], int]


class Haystack:
    """The lines of a text, of which pieces of any length can be taken."""

    def __init__(self, text: str, count_tokens: CountTokens) -> None:
        """``count_tokens`` tells the length of a text in tokens of the model."""
        self._lines = text.splitlines()
        self._count_tokens = count_tokens

    def piece(self, tokens: int, rng: np.random.Generator) -> list[str]:
        """Consecutive lines from a random place, of at most ``tokens`` tokens, and few less.

        Raises
        ------
        UserError
            The text is too short.
        """
        start = int(rng.integers(len(self._lines))) if self._lines else 0
        lines = self._lines[start:] + self._lines[:start]
        return lines[: longest(len(lines), tokens, lambda n: self._count_tokens("\n".join(lines[:n])))]


def longest(available: int, tokens: int, count_tokens: Callable[[int], int]) -> int:
    """The largest n with ``count_tokens(n) <= tokens``; UserError if even ``available`` is smaller.

    ``count_tokens`` never falls. The search doubles from below, so that it never looks at much more than it needs.
    """
    high = 1
    while high <= available and count_tokens(high) <= tokens:
        high *= 2
    low = high // 2
    if high > available:
        high = available + 1
        if count_tokens(available) <= tokens:
            raise UserError(
                f"the text is too short to cut {tokens} tokens from it: give a longer one with --text, or smaller "
                "--lengths"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count_tokens(middle) <= tokens else (low, middle)
    return low
