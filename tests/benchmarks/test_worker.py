import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import worker_client
from benchmarks.engines.base import EngineSettings, Yarn
from benchmarks.worker_client import Worker, WorkerFailure, WorkerPool

SETTINGS = EngineSettings("no such folder", threads=1, context=16, options={"library": "no.so", "settings": ""})


def test_an_engine_that_cannot_load_answers_with_its_error():
    with Worker(sys.executable, "ours", SETTINGS) as worker:
        for _ in range(2):  # the worker survives its engine's errors
            with pytest.raises(WorkerFailure, match="UserError: .*no.so"):
                worker.request("load", 60, prompt=[1, 2])


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed here")
def test_an_engine_that_is_not_installed_says_what_installs_it():
    with Worker(sys.executable, "vllm", SETTINGS) as worker:
        with pytest.raises(WorkerFailure, match="vllm is not installed: make peers"):
            worker.request("load", 60, prompt=[1, 2])


def test_a_worker_that_dies_says_why():
    with Worker(sys.executable, "no such engine", SETTINGS) as worker:
        for _ in range(2):
            with pytest.raises(WorkerFailure, match="ended with status 1: KeyError: 'no such engine'"):
                worker.request("load", 60, prompt=[1, 2])


def test_a_worker_that_does_not_answer_is_given_up():
    with Worker(sys.executable, "ours", SETTINGS) as worker:
        with pytest.raises(WorkerFailure, match="no answer to load"):
            worker.request("load", 0.01, prompt=[1, 2])


def test_settings_travel_as_json():
    settings = EngineSettings("m", 2, 16, Yarn(4.0, 32768), {"kv": "bf16"})
    assert EngineSettings.from_dict(json.loads(json.dumps(asdict(settings)))) == settings
    assert EngineSettings.from_dict(json.loads(json.dumps(asdict(SETTINGS)))) == SETTINGS


STOPPED = """
import sys
from benchmarks.__main__ import _ended_by_signals
from benchmarks.engines.base import EngineSettings
from benchmarks.worker_client import Worker, WorkerPool
with _ended_by_signals(), WorkerPool() as pool:
    worker = pool.get("a", lambda: Worker(sys.argv[1], "ours", EngineSettings("m", 1, 16)))
    print(worker._process.pid, flush=True)
    worker.request("load", 60, prompt=[])
"""


def test_a_worker_that_works_does_not_outlive_a_benchmark_that_is_stopped(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    command = [sys.executable, "-c", STOPPED, str(python)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    worker = int(program.stdout.readline())
    program.terminate()
    program.wait(60)
    assert not Path(f"/proc/{worker}").exists()


class FakeWorker:
    def __init__(self, ended: list, name: str) -> None:
        self.ended, self.name = ended, name

    def close(self) -> None:
        self.ended.append(self.name)


def test_the_longest_unused_workers_make_room(monkeypatch):
    memory = {"MemTotal": 100, "MemAvailable": 90}
    monkeypatch.setattr(worker_client, "_memory", memory.__getitem__)
    ended: list[str] = []
    with WorkerPool() as pool:
        first = pool.get("a", lambda: FakeWorker(ended, "a"))
        for name in "bc":
            pool.get(name, lambda name=name: FakeWorker(ended, name))
        assert pool.get("a", lambda: None) is first  # "b" is now the longest unused
        memory["MemAvailable"] = 10
        monkeypatch.setattr(FakeWorker, "close", lambda self: (ended.append(self.name), memory.update(MemAvailable=60)))
        pool.get("c", lambda: None)
        assert ended == ["b"]
    assert set(ended) == {"a", "b", "c"}
