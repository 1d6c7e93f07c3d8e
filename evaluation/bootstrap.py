"""Intervals of paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Interval:
    """The mean of paired differences and the percentile interval of its bootstrap distribution."""

    mean: float
    low: float
    high: float
    pairs: int


def paired_interval(
    values: Sequence[float], baseline: Sequence[float], *, level: float = 0.95, resamples: int = 4000, seed: int = 0
) -> Interval:
    """Interval of mean(values - baseline), both ``[n]`` of the same rows in the same order.

    Percentile bootstrap over rows (Efron 1979): rows are drawn with replacement, so that what makes a row hard for
    both variants cancels.
    """
    difference = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
    rng = np.random.default_rng(seed)
    means = difference[rng.integers(0, len(difference), (resamples, len(difference)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(difference.mean()), float(low), float(high), len(difference))
