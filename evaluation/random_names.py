"""Names and places for generated rows."""

from __future__ import annotations

import uuid

import numpy as np

_ADJECTIVES = "amber brisk calm dusty eager faded gentle hollow ivory jolly keen lucid mellow nimble opal proud".split()
_NOUNS = "anchor bridge candle desert ember forest glacier harbor island jacket kettle lantern meadow orchard".split()


def random_depth(rng: np.random.Generator) -> float:
    """A depth for what is not asked at a given one, off the ends."""
    return float(rng.uniform(0.05, 0.95))


def random_keys(rng: np.random.Generator, count: int) -> list[str]:
    """Names "adjective-noun" that share no word."""
    adjectives, nouns = rng.permutation(_ADJECTIVES)[:count], rng.permutation(_NOUNS)[:count]
    return [f"{adjective}-{noun}" for adjective, noun in zip(adjectives, nouns)]


def random_variables(rng: np.random.Generator, count: int) -> list[str]:
    """Different names of 5 capitals."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    codes = rng.choice(26**5, count, replace=False)
    return ["".join(letters[code // 26**place % 26] for place in range(5)) for code in codes]


def random_uuid(rng: np.random.Generator) -> str:
    """A random UUID, drawn from ``rng``."""
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))
