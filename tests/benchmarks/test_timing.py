import time

import numpy as np
import pytest

from benchmarks import timing
from benchmarks.timing import Stopwatch, best_of


@pytest.fixture
def clocks(monkeypatch):
    """CPU seconds of the machine, of the process, and wall seconds, as the stopwatch reads them."""
    now = {"machine": 100.0, "own": 10.0, "wall": 5.0}
    monkeypatch.setattr(timing, "_machine_cpu_seconds", lambda: now["machine"])
    monkeypatch.setattr(timing.time, "process_time", lambda: now["own"])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(timing.os, "cpu_count", lambda: 4)
    return now


def test_shares(clocks):
    watch = Stopwatch(threads=2)
    clocks.update(machine=108.0, own=13.0, wall=7.0)  # 2 s in which the process had 3 s and everybody else 5 s
    sample = watch.stop()
    assert (sample.seconds, sample.own_share, sample.other_share) == (2.0, 0.75, 0.625)


def test_the_engine_may_know_the_time_better(clocks):
    watch = Stopwatch(threads=2)
    clocks.update(machine=101.0, own=12.0, wall=7.0)  # the machine's clock is coarse: less than the own time is none
    sample = watch.stop(seconds=1.5)
    assert (sample.seconds, sample.own_share, sample.other_share) == (1.5, 0.5, 0.0)


def test_peak_memory_is_of_this_process():
    before = Stopwatch(1).stop().peak_rss_bytes
    block = np.ones(before + (64 << 20), np.uint8)
    assert block.nbytes < Stopwatch(1).stop().peak_rss_bytes


def test_best_of_counts_one_call():
    calls = []
    sample = best_of(lambda: (calls.append(1), time.sleep(0.001)), threads=1, budget=0.1, batches=5)
    assert 0.001 <= sample.seconds < 0.1
    assert len(calls) > 5
