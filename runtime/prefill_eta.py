"""How long the rest of a prefill will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import numpy as np

_MIN_SECONDS = 3.0  # before it, and for a rest shorter than it, nothing is said


class PrefillEta:
    """Foretells from the steps so far. A token costs the more the more tokens it looks back at, so the time for the
    first n tokens is fitted as a * n + b * n^2 with a, b >= 0."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._steps: list[tuple[int, float]] = []

    def text(self, done: int, total: int) -> str:
        """'1:02:03 left' after ``done`` of ``total`` tokens; empty where that is unknown or short."""
        seconds = self._clock() - self._started
        if done > 0:
            self._steps.append((done, seconds))
        if seconds < _MIN_SECONDS or not self._steps:
            return ""
        rest = self._rest(total)
        return "" if rest < _MIN_SECONDS else f"{timedelta(seconds=round(rest))} left"

    def _rest(self, total: int) -> float:
        tokens, seconds = np.array(self._steps, float).T
        x = tokens / total
        powers = np.stack([x, x * x], axis=1)
        a, b = np.linalg.lstsq(powers, seconds, rcond=None)[0] if len(x) > 1 else (seconds[0] / x[0], 0.0)
        if b < 0:
            a, b = (x @ seconds) / (x @ x), 0.0
        elif a < 0:
            a, b = 0.0, (x**2 @ seconds) / (x**2 @ x**2)
        return a * (1 - x[-1]) + b * (1 - x[-1] ** 2)
