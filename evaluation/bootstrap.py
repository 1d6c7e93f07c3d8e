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


def grouped_interval(
    groups: Sequence[tuple[Sequence[float], Sequence[float]]],
    *,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """Interval of the mean over groups of mean(values - baseline), each group (values, baseline): both ``[n]`` of the
    same rows in the same order.

    Percentile bootstrap over rows (Efron 1979): rows are drawn with replacement within their group, so that what makes
    a row hard for both variants cancels.
    """
    rng = np.random.default_rng(seed)
    differences = [np.asarray(values, np.float64) - np.asarray(baseline, np.float64) for values, baseline in groups]
    means = np.mean([d[rng.integers(0, len(d), (resamples, len(d)))].mean(axis=1) for d in differences], axis=0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    mean = np.mean([d.mean() for d in differences])
    return Interval(float(mean), float(low), float(high), sum(map(len, differences)))
