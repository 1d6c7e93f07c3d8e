"""Where the time of a step goes: calls and seconds by operator, as the virtual machine calls them."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any


@dataclass
class OperatorTime:
    """Calls of one operator, their wall time, and the CPU time of all threads of the process meanwhile."""

    calls: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class OperatorTimes:
    """Listens to a ModelLibrary for good, so it wants one of its own: the calls cost a few microseconds each."""

    def __init__(self, library: Any) -> None:
        self._times: defaultdict[str, OperatorTime] = defaultdict(OperatorTime)
        self._started: list[tuple[float, float]] = []
        library.instrument(self._on_call)

    def _on_call(self, name: str, before: bool) -> None:
        if before:
            self._started.append((time.perf_counter(), time.process_time()))
            return
        wall, cpu = self._started.pop()
        # The compiler numbers the variants of a kernel: observe, observe1.
        total = self._times[re.sub(r"\d*$", "", name)]
        total.calls += 1
        total.seconds += time.perf_counter() - wall
        total.cpu_seconds += time.process_time() - cpu

    def take(self) -> dict[str, OperatorTime]:
        """What was measured since the last call, by name, longest first."""
        taken = dict(sorted(self._times.items(), key=lambda item: -item[1].seconds))
        self._times.clear()
        return taken


def operator_table(title: str, times: dict[str, OperatorTime], least_share: float = 0.001) -> str:
    """A text table; operators below ``least_share`` of the time are added up in its last line.

    "cores" is CPU time / wall time: on an idle machine, how many threads had work (a thread that waits for work counts
    as busy for a while).
    """
    total = sum(entry.seconds for entry in times.values())
    shown = {name: entry for name, entry in times.items() if entry.seconds >= least_share * total}
    rest = [entry for name, entry in times.items() if name not in shown]
    if rest:
        sums = (sum(getattr(entry, field) for entry in rest) for field in ("calls", "seconds", "cpu_seconds"))
        shown[f"({len(rest)} others)"] = OperatorTime(*sums)
    shown["all operators"] = OperatorTime(sum(entry.calls for entry in times.values()), total)
    lines = [f"{title:32s} {'calls':>8s} {'ms':>10s} {'share':>7s} {'cores':>6s}"]
    for name, entry in shown.items():
        cores = f"{entry.cpu_seconds / entry.seconds:6.2f}" if entry.cpu_seconds and entry.seconds else ""
        share = entry.seconds / total if total else 0.0
        lines.append(f"{name:32s} {entry.calls:8d} {entry.seconds * 1e3:10.2f} {share:7.1%} {cores}".rstrip())
    return "\n".join(lines)
