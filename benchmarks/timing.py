"""Timing of a piece of work, with the share of the CPU that it really got."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Sample:
    """One measured interval.

    ``own_share`` is the CPU time of the process / (wall time * threads): 1 when no thread waited for the CPU or for
    another thread. ``other_share`` is the CPU time of everybody else, the hypervisor included, / (wall time * cores): 0
    on an idle machine. The kernel counts the latter in steps of 10 ms.
    """

    seconds: float
    own_share: float
    other_share: float
    peak_rss_bytes: int


class Stopwatch:
    """Started when it is made."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._machine, self._own, self._wall = _machine_cpu_seconds(), time.process_time(), time.perf_counter()

    def stop(self, seconds: float | None = None) -> Sample:
        """The interval since the start; ``seconds`` replaces its wall time where the engine has a better clock."""
        wall = time.perf_counter() - self._wall
        own = time.process_time() - self._own
        others = max(0.0, _machine_cpu_seconds() - self._machine - own)
        return Sample(
            wall if seconds is None else seconds,
            own / (wall * self._threads),
            others / (wall * (os.cpu_count() or 1)),
            _peak_rss_bytes(),
        )


def _machine_cpu_seconds() -> float:
    """CPU seconds that the whole machine spent since boot: the columns of /proc/stat but idle and iowait."""
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _peak_rss_bytes() -> int:
    """The most memory this process had resident. Not getrusage: its ru_maxrss begins at that of the parent process."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))


@dataclass(frozen=True)
class Generation:
    """A prompt and the answer to it. ``prefill`` is from the call to the first token. ``decode`` is ``decode_tokens``
    tokens after the first and SETTLING_TOKENS more, None if there were no more. ``end_to_end_seconds`` is from the call
    to token END_TO_END_TOKENS, None if there were fewer."""

    prefill: Sample
    decode: Sample | None
    decode_tokens: int
    end_to_end_seconds: float | None
    token_ids: list[int]


# Tokens before decoding is timed: the compression of the KV cache (runtime/policy.py, decode_gap) comes within them.
SETTLING_TOKENS = 136
END_TO_END_TOKENS = 100


class GenerationTimer:
    """Started when it is made; the engine calls ``on_token`` for every token."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._token_ids: list[int] = []
        self._seconds: list[float] = []
        self._decode: Stopwatch | None = None
        self._prefill, self._start = Stopwatch(threads), time.perf_counter()

    def on_token(self, token_id: int) -> None:
        self._seconds.append(time.perf_counter() - self._start)
        self._token_ids.append(token_id)
        if len(self._token_ids) == 1:
            self._first = self._prefill.stop(self._seconds[0])
        if len(self._token_ids) == SETTLING_TOKENS + 1:
            self._decode = Stopwatch(self._threads)

    def result(self, seconds: Sequence[float] | None = None) -> Generation:
        """``seconds`` from the start to each token, where the engine has a better clock. RuntimeError if none."""
        if not self._token_ids:
            raise RuntimeError("the engine generated no token")
        seconds = self._seconds if seconds is None else seconds
        decode, count = None, len(seconds) - 1 - SETTLING_TOKENS
        if count > 0:
            decode = self._decode.stop(seconds[-1] - seconds[SETTLING_TOKENS])
        prefill = replace(self._first, seconds=seconds[0])
        whole = seconds[END_TO_END_TOKENS - 1] if len(seconds) >= END_TO_END_TOKENS else None
        return Generation(prefill, decode, max(count, 0), whole, self._token_ids)


def best_of(
    work: Callable[[], object],
    threads: int,
    budget: float = 0.5,
    batches: int = 20,
    wait: Callable[[], object] = lambda: None,
) -> Sample:
    """The fastest of up to ``batches`` batches of calls, about ``budget`` seconds in all; its seconds are per call.
    ``wait`` returns when all calls are done, where they only start the work.

    The fastest and not the median: a kernel is compared with the machine's peak, and on a shared machine only
    undisturbed batches show either.
    """
    work()
    wait()
    start = time.perf_counter()
    work()
    wait()
    once = max(time.perf_counter() - start, 1e-7)
    calls = max(1, int(budget / batches / once))
    samples = []
    for _ in range(max(3, min(batches, int(budget / once)))):
        watch = Stopwatch(threads)
        start = time.perf_counter()
        for _ in range(calls):
            work()
        wait()
        samples.append(watch.stop((time.perf_counter() - start) / calls))
    return min(samples, key=lambda sample: sample.seconds)


def median_and_spread(values: list[float]) -> tuple[float, float]:
    """Median, and (max - min) / median."""
    median = statistics.median(values)
    return median, (max(values) - min(values)) / median
