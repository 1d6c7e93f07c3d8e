"""Runs all rows under a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from evaluation.peers import PeerRunner
from evaluation.runner import Job, Runner


def run_all(runners: Sequence[Runner | PeerRunner], jobs: Sequence[Job]) -> bool:
    """Run all jobs by every runner with a progress bar, lines if stderr is no terminal; whether it was interrupted."""
    total = sum(runner.work(job) for runner in runners for job in jobs)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    # Speed over a long time: rows differ much in length.
    bar = Progress(*columns, TimeRemainingColumn(), console=console, speed_estimate_period=1800, auto_refresh=False)
    task = bar.add_task("evaluation", total=total)

    def on_prefill(job: Job, tokens: int) -> None:
        bar.update(task, advance=tokens, description=job.row.id, refresh=console.is_terminal)
        if not console.is_terminal:
            state = bar.tasks[0]
            left = "?" if state.time_remaining is None else f"{state.time_remaining / 60:.1f}"
            print(f"{state.percentage:.0f} %, {left} minutes left: {job.row.id}, {tokens} tokens", file=sys.stderr)

    try:
        if console.is_terminal:
            bar.start()
        for job in jobs:
            for runner in runners:
                runner.run(job, on_prefill)
    except KeyboardInterrupt:
        return True
    finally:
        bar.stop()
    return False
