"""Repeated timing of a callable, with the share of the CPU that it really got."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class CpuClock:
    """A point in time: wall clock, CPU seconds of this process, CPU seconds of the whole machine."""

    wall: float
    own: float
    machine: float

    @classmethod
    def now(cls) -> "CpuClock":
        return cls(time.perf_counter(), time.process_time(), machine_cpu_seconds())


def machine_cpu_seconds() -> float:
    """CPU seconds that all processes and the hypervisor took since boot: every column of /proc/stat but idle and iowait."""
    try:
        with open("/proc/stat") as stat:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    except OSError:  # not Linux
        return float("nan")
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """One measured interval.

    ``seconds`` is what the engine reports; ``own_share`` = CPU time of the process / (wall * threads), 1 when no thread
    waited; ``other_share`` = CPU time of everybody else / (wall * cores), 0 on an idle machine (resolution 10 ms).
    """

    seconds: float
    own_share: float
    other_share: float

    def json(self) -> dict:
        return asdict(self)


def sample(work: Callable[[], float | None], threads: int) -> Sample:
    """Runs ``work`` once. Its return value, if any, is the time it measured itself; otherwise the wall time counts."""
    start = CpuClock.now()
    reported = work()
    end = CpuClock.now()
    wall, own = end.wall - start.wall, end.own - start.own
    others = max(0.0, end.machine - start.machine - own) / (wall * (os.cpu_count() or 1))
    return Sample(wall if reported is None else reported, own / (wall * threads), others)


def best_of(work: Callable[[], object], threads: int, budget: float = 0.5, batches: int = 20) -> Sample:
    """The best of up to ``batches`` batches of calls that together take about ``budget`` seconds; seconds are per call.

    The best and not the median: a kernel is compared with the machine's peak, and on a shared machine only the undisturbed
    batches show either.
    """
    work()
    once = sample(lambda: work() and None, threads).seconds
    calls = max(1, int(budget / batches / max(once, 1e-7)))

    def batch() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - start) / calls

    count = max(3, min(batches, int(budget / max(once, 1e-7))))
    return min((sample(batch, threads) for _ in range(count)), key=lambda s: s.seconds)


def median_and_spread(values: list[float]) -> tuple[float, float]:
    """Median, and (max - min) / median: 0 for one value."""
    median = statistics.median(values)
    return median, (max(values) - min(values)) / median
