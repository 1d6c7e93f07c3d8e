"""The parent's side of a worker process."""

import json
import select
import signal
import subprocess
import tempfile
from dataclasses import asdict
from typing import Any

from benchmarks.engines.base import EngineSettings


class WorkerFailure(Exception):
    """The worker answered with an error, died or did not answer in time; the message says which."""


class Worker:
    """Starts the process; ``request`` raises WorkerFailure. Use as a context manager: leaving it ends the process.

    Between requests the process is stopped: thread pools spin on for a while after their work (TVM's for 0.2 s), which
    would be the next engine's time.
    """

    def __init__(self, python: str, engine: str, settings: EngineSettings, timeout: float) -> None:
        self._timeout = timeout
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", engine, json.dumps(asdict(settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def request(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The worker's answer."""
        self._process.send_signal(signal.SIGCONT)
        try:
            return self._answer(do, arguments)
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def _answer(self, do: str, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerFailure(self._death()) from None
        if not select.select([self._process.stdout], [], [], self._timeout)[0]:
            self._process.kill()
            raise WorkerFailure(f"no answer to {do} within {self._timeout:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailure(self._death())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailure(answer["error"])
        return answer

    def _death(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return f"the worker ended with status {status}" + (f": {lines[-1]}" if lines else "")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()
