"""What a run writes to benchmarks/results/*.json: the source of every figure in docs/."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from benchmarks.machine import describe_machine
from benchmarks.peak import Peak
from benchmarks.timing import Sample
from runtime.errors import UserError
from runtime.whole_file import replace_file

RESULTS = Path(__file__).parent / "results"


class Run(BaseModel):
    """Circumstances of a run: one start of a command. ``commit`` ends in "+" when the tree differed from it;
    ``peak`` is the CPU's, None of a run on a GPU."""

    command: str
    date: str
    commit: str
    machine: dict[str, str | int]
    threads: int
    priority: str
    peak: Peak | None


def this_run(threads: int, priority: str, peak: Peak | None, device: str = "cpu") -> Run:
    command = " ".join(["python", *sys.orig_argv[1:]])
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Run(
        command=command,
        date=date,
        commit=_commit(),
        machine=describe_machine(device),
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


class Measurement(BaseModel):
    """One generation. ``run`` is an index into Speed.runs; ``prefill``, ``decode`` and ``end_to_end_seconds`` are as in
    benchmarks.timing.Generation, None if they were not measured; ``generated`` tokens have the text ``answer``.
    ``read_gbps`` is how fast (1e9 bytes a second) the memory was read right after it, None for peers and on GPUs."""

    variant: str
    tokens: int
    generated: int
    run: int
    identity: str = ""
    prefill: Sample | None = None
    decode: Sample | None = None
    decode_tokens: int = 0
    end_to_end_seconds: float | None = None
    answer: str = ""
    read_gbps: float | None = None


class Gap(BaseModel):
    """Why a variant has no measurement, or fewer, at a length. If only its time was the reason, ``prefill_seconds`` and
    ``decode_seconds_per_token`` are predicted from shorter prompts of ``measured`` tokens."""

    variant: str
    tokens: int
    reason: str
    prefill_seconds: float | None = None
    decode_seconds_per_token: float | None = None
    measured: list[int] = []


class Operators(BaseModel):
    """Seconds by kernel in one prefill of ``tokens`` tokens."""

    variant: str
    tokens: int
    seconds: dict[str, float]


class Speed(BaseModel):
    """All that was measured of one model: ``descriptions`` maps variants to versions and settings, ``text`` says what
    the prompts are made of, ``config`` are the fields of the ModelConfig."""

    model: str
    text: str
    config: dict[str, Any]
    runs: list[Run] = []
    descriptions: dict[str, str] = {}
    measurements: list[Measurement] = []
    gaps: list[Gap] = []
    operators: list[Operators] = []

    def of(self, variant: str, tokens: int) -> list[Measurement]:
        return [m for m in self.measurements if (m.variant, m.tokens) == (variant, tokens)]

    def gap(self, variant: str, tokens: int) -> Gap | None:
        return next((g for g in self.gaps if (g.variant, g.tokens) == (variant, tokens)), None)


class KernelFigure(BaseModel):
    """One kernel at one shape. ``share`` is of the peak named by ``unit``, measured in the same run."""

    kernel: str
    shape: str
    unit: str
    share: float
    sample: Sample


class Kernels(BaseModel):
    """A run of ``python -m benchmarks kernels``."""

    run: Run
    figures: list[KernelFigure]


class GpuFigure(BaseModel):
    """A kernel in a "prefill" or "decode" ``step``: its least work, its time, and the time on paper and what bounds it,
    if the GPU's data sheet is known."""

    step: str
    kernel: str
    bytes: float
    flops: float
    seconds: float
    least_seconds: float | None = None
    bound: str = ""


class GpuKernels(BaseModel):
    """A run of ``python -m benchmarks kernels --device cuda``: a layer of ``model``, ``chunk`` tokens that end a prompt
    of ``context``."""

    run: Run
    model: str
    context: int
    chunk: int
    figures: list[GpuFigure]


class Start(BaseModel):
    """Seconds of each repeat, and peak memory of an engine's process, or why there are none."""

    name: str
    seconds: list[float] = []
    peak_rss_bytes: int = 0
    gap: str | None = None


class Compile(BaseModel):
    """A run of ``python -m benchmarks compile``: ``compile`` are runs of compile.py, ``start`` times from the start of
    an engine's process to its first token."""

    run: Run
    model: str
    compile: list[Start]
    start: list[Start]


def read_speed(path: Path, model: str, text: str, config: dict[str, Any], device: str = "cpu") -> Speed:
    """What is stored in ``path``, to go on with; empty if there is no file. UserError if it is of something else."""
    if not path.is_file():
        return Speed(model=model, text=text, config=config)
    speed = Speed.model_validate_json(path.read_text())
    if (speed.model, speed.text) != (model, text):
        raise UserError(
            f"{path} holds figures of {speed.model} with {speed.text}, not of {model} with {text}: give another"
            " --output"
        )
    if any(run.machine != describe_machine(device) for run in speed.runs):
        raise UserError(f"{path} holds figures of another machine: give another --output")
    return speed


def write(result: BaseModel, path: Path) -> None:
    """Replaces the file in one step, so that an interrupted run leaves a whole one."""
    text = result.model_dump_json(indent=1) + "\n"
    replace_file(path, lambda part: part.write_text(text))
