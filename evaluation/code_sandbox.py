"""pass@1: whether a program that a model wrote passes its tests, in a process of its own with limits."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("sandbox_child.py")
_CODE_BLOCK = re.compile(r"```[ \t]*(?:python|py|Python)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use. ``wall_seconds`` is generous, since the machine may be busy; CPU seconds are its own."""

    cpu_seconds: int = 8
    wall_seconds: float = 30.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """``passed``, and otherwise the last line of what the program wrote to stderr, or what stopped it."""

    passed: bool
    reason: str = ""


def run_program(code: str, limits: Limits = Limits()) -> Verdict:
    """Run Python code to its end in an empty folder, without network, other processes or changes to files elsewhere.

    A program that leaves early, by sys.exit or os._exit with any status, has not passed.
    """
    nonce = secrets.token_hex(16)
    read_end, write_end = os.pipe()
    with tempfile.TemporaryDirectory(prefix="pass-at-1-") as folder, tempfile.TemporaryFile() as stderr:
        request: dict[str, Any] = {"code": code, "nonce": nonce, "result": write_end}
        for name in ("cpu_seconds", "memory_bytes", "file_bytes"):
            request[name] = getattr(limits, name)
        try:
            # Isolated mode: no environment, no user site, and not this project on sys.path.
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=folder,
                env={"LANG": "C.UTF-8"},
                pass_fds=(write_end,),
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        with os.fdopen(read_end, "rb") as result:
            try:
                process.communicate(json.dumps(request).encode(), timeout=limits.wall_seconds)
            except subprocess.TimeoutExpired:
                return Verdict(False, f"still running after {limits.wall_seconds:g} seconds")
            finally:
                _kill_group(process)
            passed = result.read(len(nonce)) == nonce.encode()
        return Verdict(True) if passed else Verdict(False, _reason(process.returncode, stderr))


def _kill_group(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _reason(status: int, stderr: Any) -> str:
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    stderr.seek(0)
    lines = stderr.read()[-4000:].decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"left early with status {status}"


def extract_code(output: str) -> str:
    """The Python code block of an answer (perhaps not closed); an answer without one is taken as code itself."""
    match = _CODE_BLOCK.search(output)
    return match[1] if match else output


def program_with_tests(output: str, question: str, test: str, entry_point: str | None) -> str:
    """The program that passes if the answer is right.

    With an entry point (HumanEval) the question is the beginning of a file that ends in the header of that function.
    What stands before the header (imports, helper functions) goes before the answer. An answer without the function
    is taken as its body. Without an entry point (MBPP) the answer is the whole code.
    """
    code = extract_code(output)
    if entry_point is None:
        return f"{code}\n\n{test}\n"
    header = re.compile(rf"^def\s+{re.escape(entry_point)}\b", re.MULTILINE)
    if header.search(code):
        before = question[: match.start()] if (match := header.search(question)) else ""
        code = f"{before}\n{code}"
    else:
        code = question + code
    return f"{code}\n\n{test}\n\ncheck({entry_point})\n"


def pass_at_1(output: str, question: str, test: str, entry_point: str | None, limits: Limits = Limits()) -> Verdict:
    """Run the tests of a HumanEval or MBPP row on an answer."""
    return run_program(program_with_tests(output, question, test, entry_point), limits)
