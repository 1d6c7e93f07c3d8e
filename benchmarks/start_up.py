"""``python -m benchmarks compile``: how long compile.py takes, and each engine from its start to the first token."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.markdown import markdown
from benchmarks.measure import Plan, start_worker
from benchmarks.store import Compile, Start
from benchmarks.timing import median_and_spread
from benchmarks.variants import Variant
from benchmarks.worker_client import WorkerFailure

_PROMPT_TOKENS = 16
_SECONDS = 900


def measure_compile(gguf: Path, repeats: int, say: Callable[[str], None]) -> list[Start]:
    """compile.py on a GGUF file, into a folder that is thrown away."""
    compile_py = Path(__file__).parent.parent / "compile.py"
    options = {
        "library, entropy + latent": [],
        "library, dense + full": ["--prefill", "dense", "--decode", "full"],
        "library and weights": ["--weights", str(gguf)],
    }
    rows = [Start(name=name) for name in options]
    for _ in range(repeats):
        for row in rows:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, str(compile_py), "--model", str(gguf), *options[row.name], "-o", folder]
                start = time.perf_counter()
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                _, errors = process.communicate()
                row.seconds.append(time.perf_counter() - start)
            if process.returncode:
                row.seconds, row.gap = [], (errors.strip().splitlines() or ["failed"])[-1]
            say(f"{row.name}: {row.gap or f'{row.seconds[-1]:.1f} s'}")
    return rows


def measure_start(plan: Plan, variants: list[Variant], say: Callable[[str], None]) -> list[Start]:
    """Each engine: a process with an empty prompt cache, to the first token of a short prompt."""
    rows = [Start(name=variant.label) for variant in variants]
    for _ in range(plan.repeats):
        for row, variant in zip(rows, variants, strict=True):
            if row.gap:
                continue
            try:
                start, answer = _first_token(plan, variant)
            except WorkerFailure as failure:
                row.gap = str(failure)
            else:
                row.seconds.append(start)
                row.peak_rss_bytes = max(row.peak_rss_bytes, answer["prefill"]["peak_rss_bytes"])
            say(f"{row.name}: {row.gap or f'{row.seconds[-1]:.1f} s'}")
    return rows


def _first_token(plan: Plan, variant: Variant) -> tuple[float, dict]:
    start = time.perf_counter()
    with start_worker(plan, variant, 1024) as worker:
        worker.request("load", _SECONDS, prompt=list(plan.prompt[:_PROMPT_TOKENS]))
        answer = worker.request("generate", _SECONDS, tokens=_PROMPT_TOKENS, count=1)
        return time.perf_counter() - start, answer


def start_table(rows: list[Start], title: str) -> str:
    """Markdown: median seconds ± half the spread, and peak memory."""
    table = [[title, "seconds", "peak memory, MiB"], ["---", "---:", "---:"]]
    for row in rows:
        if not row.seconds:
            table.append([row.name, f"gap: {row.gap}", ""])
            continue
        seconds, spread = median_and_spread(row.seconds)
        table.append(
            [
                row.name,
                f"{seconds:.1f} ±{50 * spread:.0f} %",
                f"{row.peak_rss_bytes / 2**20:.0f}" if row.peak_rss_bytes else "",
            ]
        )
    return markdown(table)


def compile_section(result: Compile) -> str:
    """Both tables of one model."""
    parts = [f"### {result.model}", start_table(result.compile, "compile.py")]
    return "\n\n".join([*parts, start_table(result.start, "from the start of the process to the first token")])
