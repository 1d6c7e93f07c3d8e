import numpy as np
import pytest

from evaluation.bootstrap import grouped_interval


def test_against_a_bootstrap_written_out() -> None:
    rng = np.random.default_rng(5)
    values, baseline = rng.normal(0.3, 1.0, 40), rng.normal(0.0, 1.0, 40)
    interval = grouped_interval([(values, baseline)], resamples=3000)
    draw = np.random.default_rng(99)
    means = sorted(np.mean((values - baseline)[draw.choice(40, 40)]) for _ in range(3000))
    assert interval.mean == pytest.approx(np.mean(values) - np.mean(baseline))
    # Two bootstraps of 3000 agree to a few standard errors of a quantile.
    assert interval.low == pytest.approx(means[75], abs=0.06)
    assert interval.high == pytest.approx(means[2925], abs=0.06)
    assert interval.pairs == 40


def test_what_rows_have_in_common_cancels() -> None:
    hard_and_easy = np.linspace(-50, 50, 30)
    interval = grouped_interval([(hard_and_easy + 0.1, hard_and_easy)])
    assert (interval.low, interval.mean, interval.high) == pytest.approx((0.1, 0.1, 0.1))


def test_level_and_one_row() -> None:
    values = np.random.default_rng(0).normal(size=50)
    narrow, wide = (grouped_interval([(values, values * 0)], level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert grouped_interval([([2.0], [1.5])]).low == pytest.approx(0.5)


def test_groups_count_alike_and_are_drawn_by_themselves() -> None:
    rng = np.random.default_rng(7)
    large, small = rng.normal(0.0, 1.0, 60), rng.normal(1.0, 2.0, 8)
    interval = grouped_interval([(large, 0 * large), (small, 0 * small)], resamples=3000)
    draw = np.random.default_rng(98)
    means = sorted((draw.choice(large, 60).mean() + draw.choice(small, 8).mean()) / 2 for _ in range(3000))
    assert interval.mean == pytest.approx((large.mean() + small.mean()) / 2) and interval.pairs == 68
    assert interval.low == pytest.approx(means[75], abs=0.1) and interval.high == pytest.approx(means[2925], abs=0.1)
