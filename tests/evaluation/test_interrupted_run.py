"""Whole runs that a signal ends: what was done is kept, and the same command goes on."""

import json
import signal
import subprocess
import sys

import pytest

import evaluation.runner
from runtime.library import ModelLibrary


def test_an_interrupted_run_goes_on(run, monkeypatch) -> None:
    measured = []
    measure = evaluation.runner.measure

    def interrupted(row, *arguments, **options):
        if len(measured) == 4:
            raise KeyboardInterrupt
        measured.append(row.id)
        return measure(row, *arguments, **options)

    monkeypatch.setattr(evaluation.runner, "measure", interrupted)
    first, results = run()
    assert first.exit_code == 130 and "the same command goes on" in first.output
    assert len(results) == 4 and set(measured) == {"chat/0", "letters/0"}
    measured.append("no more interruptions")
    second, complete = run()
    assert second.exit_code == 0 and len(complete) == 12
    assert measured[4:].count("chat/0") == 0 and {k: complete[k] for k in results} == results
    third, _ = run()
    assert len(measured) == 13 and "6 rows, 2 policies." in third.output


@pytest.mark.parametrize("function", ["prefill", "decode"])
def test_ctrl_c_in_the_middle_of_a_step(run, monkeypatch, function: str) -> None:
    calls = []
    step = getattr(ModelLibrary, function)

    def interrupted(*arguments):
        calls.append(step(*arguments))
        if len(calls) == 9:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(ModelLibrary, function, interrupted)
    first, results = run()
    assert first.exit_code == 130 and len(results) < 12
    second, results = run()
    assert second.exit_code == 0 and len(results) == 12


IN_THE_BACKGROUND = """
import signal, sys, time
from evaluation.__main__ import app
from evaluation.session import Session

decode, calls = Session.decode, []

def slow(*arguments):
    calls.append(time.sleep(0 if len(calls) < 40 else 0.05))
    if len(calls) == 60:
        print("now", flush=True)
    return decode(*arguments)

Session.decode = slow
app(sys.argv[1:])
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_in_the_background_stops_and_goes_on(run, toy_model, data, tmp_path, number: int, status: int) -> None:
    """Shells start what they put in the background with SIGINT ignored."""
    arguments = ["--model", str(toy_model), "--data", str(data), "-o", str(tmp_path / "r.json")]
    program = subprocess.Popen(
        [sys.executable, "-c", IN_THE_BACKGROUND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert program.stdout.readline() == "now\n"
    program.send_signal(number)
    _, errors = program.communicate(timeout=300)
    assert program.returncode == status and "the same command goes on" in errors, errors
    files = {path.name for path in tmp_path.iterdir()}
    assert files - {"r.png"} == {"r.jsonl", "r.json", "r.md"}
    lines = (tmp_path / "r.jsonl").read_text()
    results = [json.loads(line) for line in lines.splitlines()[1:]]
    assert lines.endswith("\n") and 0 < len(results) < 12
    assert json.loads((tmp_path / "r.json").read_text())["summary"]["incomplete_rows"] in (0, 1)
    done, complete = run()
    assert done.exit_code == 0 and len(complete) == 12
    assert all(complete[result["row"], result["policy"]] == result["outcome"] for result in results)
