"""Programs that must pass, and programs that must be stopped."""

import os
import time
from pathlib import Path

import pytest

from evaluation.code_sandbox import Limits, extract_code, pass_at_1, run_program

QUESTION = (
    'from typing import List\n\ndef twice(x):\n    return 2 * x\n\ndef total(xs: List[int]) -> int:\n    """Sum."""\n'
)
TEST = "def check(candidate):\n    assert candidate([1, 2]) == 6\n"


def test_a_program_that_ends_passes() -> None:
    assert run_program("import collections, re\nopen('note', 'w').write('x')\nassert open('note').read() == 'x'").passed


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "left early with status 0"),
        ("import sys; sys.exit(3)", "left early with status 3"),
        ("import os; os._exit(0)", "left early with status 0"),
        ("input()", "EOFError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("x = bytearray(1 << 30)", "MemoryError"),
        ("while True: open('big', 'ab').write(b'x' * 100_000)", "File too large"),
        ("fs = []\nwhile True: fs.append(open('f', 'w'))", "Too many open files"),
        ("import os; os.system('true')", "os.system is not allowed"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen is not allowed"),
        ("import socket; socket.socket()", "socket.__new__ is not allowed"),
        ("import os; os.kill(os.getppid(), 0)", "os.kill is not allowed"),
        ("import os; os.fork()", "os.fork is not allowed"),
    ],
)
def test_a_program_that_does_not_end_well_fails(code: str, reason: str) -> None:
    verdict = run_program(code, Limits(memory_bytes=512 << 20))
    assert not verdict.passed
    assert reason in verdict.reason


def test_files_elsewhere_stay_as_they_are(tmp_path: Path) -> None:
    kept, new = tmp_path / "kept", tmp_path / "new"
    kept.write_text("here")
    for code in (
        f"open({str(new)!r}, 'w')",
        f"open({str(kept)!r}, 'a').write('x')",
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.rename({str(kept)!r}, 'mine')",
        f"import os; os.mkdir({str(new)!r})",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"import pathlib; pathlib.Path({str(new)!r}).touch()",
        f"import os; os.symlink({str(kept)!r}, 'link'); open('link', 'w')",
    ):
        assert not run_program(code).passed, code
        assert kept.read_text() == "here" and not new.exists(), code


def test_time_limits() -> None:
    assert "SIG" in run_program("while True: pass", Limits(cpu_seconds=1)).reason
    started = time.monotonic()
    verdict = run_program("import time; time.sleep(60)", Limits(wall_seconds=0.5))
    assert verdict.reason == "still running after 0.5 seconds" and time.monotonic() - started < 20


def test_environment_is_hidden(monkeypatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    assert run_program("import os; assert 'SECRET_TOKEN' not in os.environ").passed
    assert run_program("import os; assert os.listdir() == []").passed
    assert os.environ["SECRET_TOKEN"] == "x"


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("Sure:\n```python\nx = 1\n```\nThat is it.", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\ny = 2", "x = 1\ny = 2"),
        ("    return 1", "    return 1"),
        ("```python\na\n```\n```python\nb\n```", "a\n"),
    ],
)
def test_code_of_an_answer(output: str, code: str) -> None:
    assert extract_code(output) == code


@pytest.mark.parametrize(
    ("output", "passed"),
    [
        (
            "```python\ndef total(xs: List[int]) -> int:\n    return sum(map(twice, xs))\n```",
            True,
        ),  # helper of the question
        ("    return sum(twice(x) for x in xs)\n", True),  # a body only
        ("```python\ndef total(xs):\n    return sum(xs)\n```", False),
        ("I do not know.", False),
    ],
)
def test_humaneval(output: str, passed: bool) -> None:
    assert pass_at_1(output, QUESTION, TEST, "total").passed == passed


def test_mbpp() -> None:
    test = "assert convert(1) == 2\nassert convert(2) == 3"
    assert pass_at_1("```python\ndef convert(n):\n    return n + 1\n```", "### Task", test, None).passed
    assert not pass_at_1("```python\ndef convert(n):\n    return 2\n```", "### Task", test, None).passed
