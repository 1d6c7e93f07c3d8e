"""The parent's side of a worker process."""

import json
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from benchmarks.engines.base import EngineSettings

_ROOT = Path(__file__).parent.parent


class WorkerFailure(Exception):
    """The worker answered with an error, died or did not answer in time; the message says which."""


class Worker:
    """Starts the process; ``request`` raises WorkerFailure. Use as a context manager: leaving it ends the process.

    Between requests the process is stopped: thread pools spin on for a while after their work (TVM's for 0.2 s), which
    would be the next engine's time.
    """

    def __init__(self, python: str, engine: str, settings: EngineSettings) -> None:
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", engine, json.dumps(asdict(settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
            process_group=0,  # of its own, that what the engine starts is stopped and ended with it
        )

    def request(self, do: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """The worker's answer, waited for ``timeout`` seconds."""
        self._signal(signal.SIGCONT)
        try:
            return self._answer(do, timeout, arguments)
        finally:
            self._signal(signal.SIGSTOP)

    def _answer(self, do: str, timeout: float, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerFailure(self._death()) from None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            self._signal(signal.SIGKILL)
            raise WorkerFailure(f"no answer to {do} within {timeout:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailure(self._death())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailure(answer["error"])
        return answer

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass

    def _death(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return f"the worker ended with status {status}" + (f": {lines[-1]}" if lines else "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._errors.close()


class WorkerPool:
    """Workers by name, started when they are first asked for and kept, as far as memory allows.

    Half of the machine's memory is kept free for the one that works; the others are ended for it, the longest unused
    first.
    """

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def get(self, name: str, start: Callable[[], Worker]) -> Worker:
        """The worker of that name, from ``start`` if there is none; WorkerFailure if that fails."""
        worker = self._workers.pop(name, None)
        while self._workers and _memory("MemAvailable") < _memory("MemTotal") / 2:
            self._workers.pop(next(iter(self._workers))).close()
        self._workers[name] = worker or start()
        return self._workers[name]

    def drop(self, name: str) -> None:
        """End the worker of that name, if there is one."""
        if worker := self._workers.pop(name, None):
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for name in list(self._workers):
            self.drop(name)


def _memory(name: str) -> int:
    """A line of /proc/meminfo, in kB."""
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
