"""A benchmark in a session of its own."""

import signal
import subprocess
import sys
import time

import pytest

_PROGRAM = """
import os, signal, sys, time
from benchmarks.machine import run_in_own_session
run_in_own_session()
def stop(number, frame):
    print("stopped by", number, flush=True)
    sys.exit(3)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
print("ready", os.getsid(0) == os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_benchmark(number):
    program = subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, text=True)
    assert program.stdout.readline() == "ready True\n"
    started = time.monotonic()
    program.send_signal(number)
    assert program.stdout.read() == f"stopped by {int(number)}\n"
    assert program.wait() == 3 and time.monotonic() - started < 30
