"""What the command lines share: errors, the progress of a prefill, speeds. All of it goes to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from runtime.errors import UserError
from runtime.prefill_eta import PrefillEta
from runtime.stream_output import Usage


def print_error(err: UserError) -> None:
    """One line on stderr."""
    print(f"error: {err}", file=sys.stderr)


@contextmanager
def user_errors() -> Iterator[None]:
    """End the program with the message and status 1 when a UserError is raised inside."""
    try:
        yield
    except UserError as err:
        print_error(err)
        raise typer.Exit(1) from None


def speeds(usage: Usage) -> str:
    """As mlc_llm prints them: "prefill: 812.3 tok/s, decode: 95.1 tok/s"."""
    decode = "N/A" if usage.decode_tokens_per_s is None else f"{usage.decode_tokens_per_s:.1f}"
    return f"prefill: {usage.prefill_tokens_per_s:.1f} tok/s, decode: {decode} tok/s"


class PrefillProgress:
    """Shows a prefill: a bar in a terminal, a line after each chunk elsewhere, and the time that a long one will take.
    Pass it as ``on_prefill``.

    As a context manager it takes the bar away however the prefill ends, so that the answer begins on a clean line.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._is_terminal = console.is_terminal
        counts = (TextColumn("prefill"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
        columns = (*counts, TimeElapsedColumn(), TextColumn("{task.description}"))
        # Redrawn after each chunk only: a thread that redraws in between would compete with the kernels.
        self._bar = Progress(*columns, console=console, transient=True, auto_refresh=False)
        self._task: TaskID | None = None
        self._eta: PrefillEta | None = None

    def __call__(self, done: int, total: int) -> None:
        self._eta = self._eta or PrefillEta()
        left = self._eta.text(done, total)
        if not self._is_terminal:
            if done:
                print(f"prefill {done}/{total} tokens{left and ', '}{left}", file=sys.stderr)
            return
        if self._task is None:
            self._task = self._bar.add_task("", total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, description=left, refresh=True)
        if done == total:
            self._bar.stop()

    def __enter__(self) -> PrefillProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._task is not None:
            self._bar.stop()
