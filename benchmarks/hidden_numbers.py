"""Numbers that are hidden in a text, and whether an answer has them."""

from __future__ import annotations

import re

import numpy as np


def random_numbers(rng: np.random.Generator, count: int) -> list[str]:
    """Different numbers of 7 digits."""
    return [str(1_000_000 + n) for n in rng.choice(9_000_000, count, replace=False)]


def has_number(output: str, number: str) -> bool:
    """Whether ``number`` occurs in the output; thousands separators do not count."""
    return _without_separators(number) in _without_separators(output)


def _without_separators(text: str) -> str:
    return re.sub(r"(?<=\d),(?=\d{3})", "", text)
