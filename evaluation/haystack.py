"""Texts to hide things in: any text file, or the source of Python's standard library, which every machine has."""

from __future__ import annotations

import gzip
import sysconfig
from collections.abc import Callable
from pathlib import Path

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


def read_text(path: Path | None) -> str:
    """The text of a file (UTF-8, perhaps .gz), or by default of Python's own standard library."""
    if path is None:
        return _standard_library()
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as err:
        raise UserError(f"the text {path} cannot be read ({err}): give a UTF-8 text file, plain or .gz") from None


def _standard_library() -> str:
    """The modules at the top of the library in alphabetical order, each after a line with its name."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(folder.glob("*.py"))
    if not files:
        raise UserError(f"{folder} has no Python source to make data from: give a text with --text")
    return "\n".join(f"# ---- file: {file.name} ----\n{file.read_text(encoding='utf-8')}" for file in files)
