"""What a run writes to benchmarks/results/*.json: the source of every figure in docs/."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from benchmarks.machine import describe_machine
from benchmarks.peak import Peak
from benchmarks.timing import Sample, median_and_spread

RESULTS = Path(__file__).parent / "results"


class Run(BaseModel):
    """Circumstances of a run. ``commit`` ends in "+" when the tree differed from it."""

    command: str
    date: str
    commit: str
    machine: dict[str, str | int]
    threads: int
    priority: str
    peak: Peak


def this_run(threads: int, priority: str, peak: Peak) -> Run:
    command = " ".join(["python", *sys.orig_argv[1:]])
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Run(
        command=command,
        date=date,
        commit=_commit(),
        machine=describe_machine(),
        threads=threads,
        priority=priority,
        peak=peak,
    )


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class Cell(BaseModel):
    """One figure of one variant. ``tokens`` is the length of the prompt; ``count`` the tokens a sample processed: the
    prompt's in "prefill", the generated ones in "decode". ``gap`` says why there are no samples, or no more."""

    variant: str
    phase: str
    tokens: int
    count: int
    samples: list[Sample] = []
    gap: str | None = None

    @property
    def speed(self) -> tuple[float, float] | None:
        """Median tokens a second, and spread; None without samples."""
        return median_and_spread([self.count / s.seconds for s in self.samples]) if self.samples else None

    @property
    def own_share(self) -> float:
        """The lowest share of the CPU that a sample had."""
        return min(sample.own_share for sample in self.samples)

    @property
    def peak_rss_bytes(self) -> int:
        """The most memory that the engine's process had had resident by then."""
        return max(sample.peak_rss_bytes for sample in self.samples)


class DecodePrefill(BaseModel):
    """A run of benchmarks.decode_prefill: ``descriptions`` maps variants to versions and settings."""

    run: Run
    model: str
    descriptions: dict[str, str]
    cells: list[Cell]

    def cell(self, variant: str, phase: str, tokens: int) -> Cell | None:
        same = (c for c in self.cells if (c.variant, c.phase, c.tokens) == (variant, phase, tokens))
        return next(same, None)


class KernelFigure(BaseModel):
    """One kernel at one shape. ``share`` is of the peak named by ``unit``, measured in the same run."""

    kernel: str
    shape: str
    unit: str
    share: float
    sample: Sample


class Kernels(BaseModel):
    """A run of benchmarks.kernels."""

    run: Run
    figures: list[KernelFigure]


class Policies(BaseModel):
    """A run of benchmarks.policies. ``settings`` maps variants to what was changed in the library's policy;
    ``operators`` maps them to the seconds of each kernel in one prefill of ``operator_tokens`` tokens."""

    run: Run
    model: str
    settings: dict[str, str]
    cells: list[Cell]
    operator_tokens: int
    operators: dict[str, dict[str, float]]

    def cell(self, variant: str, phase: str, tokens: int) -> Cell | None:
        same = (c for c in self.cells if (c.variant, c.phase, c.tokens) == (variant, phase, tokens))
        return next(same, None)


def write(result: BaseModel, path: Path) -> None:
    """Replaces the file in one step, so that an interrupted run leaves a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(result.model_dump_json(indent=1) + "\n")
    os.replace(unfinished, path)
