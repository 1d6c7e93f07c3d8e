import sys

import pytest

from benchmarks.engines.base import EngineSettings
from benchmarks.worker_client import Worker, WorkerFailure

SETTINGS = EngineSettings("no such folder", threads=1, context=16)


def test_an_engine_that_cannot_load_answers_with_its_error():
    with Worker(sys.executable, "ours", SETTINGS, timeout=60) as worker:
        for _ in range(2):  # the worker survives its engine's errors
            with pytest.raises(WorkerFailure, match="UserError: .*no such folder"):
                worker.request("load", prompt=[1, 2], warm_up=2)


def test_a_worker_that_dies_says_why():
    with Worker(sys.executable, "no such engine", SETTINGS, timeout=60) as worker:
        for _ in range(2):
            with pytest.raises(WorkerFailure, match="ended with status 1: KeyError: 'no such engine'"):
                worker.request("load", prompt=[1, 2], warm_up=2)


def test_a_worker_that_does_not_answer_is_given_up():
    with Worker(sys.executable, "ours", SETTINGS, timeout=0.01) as worker:
        with pytest.raises(WorkerFailure, match="no answer to load"):
            worker.request("load", prompt=[1, 2], warm_up=2)
