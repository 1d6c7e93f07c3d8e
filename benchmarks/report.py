"""Renders benchmarks/results/*.json as the tables and plots of docs/."""

import re
from pathlib import Path

from benchmarks.gpu_kernels import gpu_kernel_section
from benchmarks.kernels import kernel_table
from benchmarks.limits import limits_table
from benchmarks.long_prompt_plot import plot_long_prompt
from benchmarks.long_prompt_store import LongPrompt
from benchmarks.long_prompt_table import long_prompt_section
from benchmarks.markdown import circumstances
from benchmarks.operator_table import operator_table
from benchmarks.plots import plot
from benchmarks.start_up import compile_section
from benchmarks.store import RESULTS, Compile, GpuKernels, Kernels, Run, Speed
from benchmarks.tables import METRICS, answers, gaps, speed_table, variants

DOCS = Path(__file__).parent.parent / "docs"


def replace_section(document: str, name: str, content: str) -> str:
    """``document`` with ``content`` between its lines ``<!-- begin NAME -->`` and ``<!-- end NAME -->``."""
    pattern = re.compile(rf"(<!-- begin {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
    replaced, count = pattern.subn(lambda match: match[1] + content + "\n" + match[2], document)
    if count != 1:
        raise ValueError(f"the document has {count} sections {name}")
    return replaced


def speed_section(speed: Speed, plot_name: str) -> str:
    """Everything the page says of one model."""
    parts = [f"### {speed.model}", *(speed_table(speed, metric) for metric in METRICS.values())]
    parts.append(f"![speed and memory of {speed.model} against prompt length]({plot_name})")
    if table := limits_table(speed):
        parts.append(f"What the work itself takes on this machine, and our share of that:\n\n{table}")
    parts.append(operator_table(speed))
    notes = [f"- {label}: {speed.descriptions[label]}" for label in variants(speed) if label in speed.descriptions]
    notes += [f"- gap: {gap}" for gap in gaps(speed)]
    parts.append("\n".join(notes))
    if table := answers(speed):
        parts.append(f"<details><summary>What was generated after {speed.text}</summary>\n\n{table}\n\n</details>")
    parts += [circumstances(run) for run in used_runs(speed)]
    return "\n\n".join(part for part in parts if part)


def used_runs(speed: Speed) -> list[Run]:
    """The runs that a measurement is of."""
    return [speed.runs[index] for index in sorted({m.run for m in speed.measurements})]


def ours_section(speed: Speed) -> str:
    """Our policies beside each other, without the peers."""
    ours = [m for m in speed.measurements if m.variant.startswith("ours")]
    alone = speed.model_copy(update={"measurements": ours, "gaps": []})
    tables = (speed_table(alone, METRICS["prefill"]), speed_table(alone, METRICS["decode"]), operator_table(alone))
    notes = "\n".join(f"- {label}: {speed.descriptions[label]}" for label in variants(alone))
    runs = [circumstances(run) for run in used_runs(alone)]
    return "\n\n".join(part for part in [f"### {speed.model}", *tables, notes, *runs] if part)


def write_docs(results: Path = RESULTS, docs: Path = DOCS) -> None:
    """Write the generated sections of docs/performance.md, gpu.md and entropy-inference.md, and the plots, anew."""
    speeds = [Speed.model_validate_json(path.read_text()) for path in sorted(results.glob("speed_*.json"))]
    sections, ours = [], []
    for speed in speeds:
        name = f"performance_{speed.model}.svg"
        plot(speed, docs / name)
        sections.append(speed_section(speed, name))
        if len([label for label in variants(speed) if label.startswith("ours")]) > 1:
            ours.append(ours_section(speed))
    compiled = [Compile.model_validate_json(path.read_text()) for path in sorted(results.glob("compile_*.json"))]
    page = docs / "performance.md"
    document = replace_section(page.read_text(), "speed", "\n\n".join(sections))
    document = replace_section(
        document, "compile", "\n\n".join(f"{compile_section(c)}\n\n{circumstances(c.run)}" for c in compiled)
    )
    for path in results.glob("kernels.json"):
        kernels = Kernels.model_validate_json(path.read_text())
        document = replace_section(document, "kernels", f"{kernel_table(kernels)}\n\n{circumstances(kernels.run)}")
    if long_prompts := [_long_prompt(path, docs) for path in sorted(results.glob("long_prompt_*.json"))]:
        document = replace_section(document, "long-prompt", "\n\n".join(long_prompts))
    page.write_text(document)
    for path in results.glob("kernels_cuda.json"):
        on_gpu = GpuKernels.model_validate_json(path.read_text())
        page = docs / "gpu.md"
        section = f"{gpu_kernel_section(on_gpu)}\n\n{circumstances(on_gpu.run)}"
        page.write_text(replace_section(page.read_text(), "measured", section))
    page = docs / "entropy-inference.md"
    page.write_text(replace_section(page.read_text(), "policies", "\n\n".join(ours)))


def _long_prompt(path: Path, docs: Path) -> str:
    record = LongPrompt.model_validate_json(path.read_text())
    name = f"performance_{path.stem}.svg"
    plot_long_prompt(record, docs / name)
    return long_prompt_section(record, name)
