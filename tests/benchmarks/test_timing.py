import time

import numpy as np
import pytest

from benchmarks import timing
from benchmarks.timing import END_TO_END_TOKENS, SETTLING_TOKENS, GenerationTimer, Stopwatch, best_of


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


@pytest.fixture
def generation(clocks):
    """A timer, and what gives it so many tokens a second apart of which half a second is own CPU time on 2 threads."""
    timer = GenerationTimer(threads=2)

    def tokens(count: int, first_seconds: float) -> GenerationTimer:
        for i in range(count):
            clocks["wall"] += 1.0 if i else first_seconds
            clocks["own"] += 1.0 if i else 2 * first_seconds
            timer.on_token(i)
        return timer

    return tokens


def test_decoding_is_timed_behind_the_settling_tokens(generation):
    result = generation(SETTLING_TOKENS + 11, 8.0).result()
    assert (result.prefill.seconds, result.prefill.own_share) == (8.0, 1.0)
    assert (result.decode.seconds, result.decode_tokens, result.decode.own_share) == (10.0, 10, 0.5)
    assert result.end_to_end_seconds == 8.0 + END_TO_END_TOKENS - 1
    assert result.token_ids == list(range(SETTLING_TOKENS + 11))


def test_a_short_answer_has_no_decode_figure(generation):
    result = generation(SETTLING_TOKENS + 1, 8.0).result()
    assert result.decode is None and result.decode_tokens == 0 and result.end_to_end_seconds


def test_the_end_to_end_time_wants_all_its_tokens(generation):
    assert generation(END_TO_END_TOKENS - 1, 8.0).result().end_to_end_seconds is None


def test_an_engine_with_a_better_clock(generation):
    seconds = [2.0 + 0.5 * i for i in range(SETTLING_TOKENS + 3)]
    result = generation(SETTLING_TOKENS + 3, 8.0).result(seconds)
    assert (result.prefill.seconds, result.decode.seconds, result.end_to_end_seconds) == (2.0, 1.0, 51.5)


def test_an_answer_without_tokens_is_an_error(clocks):
    with pytest.raises(RuntimeError, match="no token"):
        GenerationTimer(threads=2).result()
