"""``python -m benchmarks.report``: renders benchmarks/results/*.json as the tables and plots of docs/."""

import re
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.markdown import circumstances, markdown
from benchmarks.plots import plot_prefill
from benchmarks.policy_report import policy_section
from benchmarks.results_file import RESULTS, Cell, DecodePrefill, Kernels, Policies

DOCS = Path(__file__).parent.parent / "docs"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def speed_table(result: DecodePrefill) -> str:
    """Markdown: a row per variant, a column per figure: median tok/s ± half the spread, and our best figure as a
    multiple of it; then our best against each peer's best. Then the lowest CPU share of a sample, and the
    most memory that the process had resident."""
    columns = list(dict.fromkeys((cell.phase, cell.tokens) for cell in result.cells))
    ours = {column: best_speed(result, "ours", column) for column in columns}
    rows = [
        ["tok/s", *(f"{phase} {'' if phase == 'prefill' else '@ '}{n}" for phase, n in columns), "CPU share", "memory"]
    ]
    rows.append(["---", *["---:"] * (len(columns) + 2)])
    for label in result.descriptions:
        cells = [result.cell(label, *column) for column in columns]
        measured = [cell for cell in cells if cell and cell.samples]
        share = f"{min(cell.own_share for cell in measured):.2f}" if measured else ""
        memory = f"{max(cell.peak_rss_bytes for cell in measured) / 2**20:.0f} MiB" if measured else ""
        others = {} if _engine(label) == "ours" else ours
        figures = (_figure(cell, others.get(column)) for cell, column in zip(cells, columns, strict=True))
        rows.append([label, *figures, share, memory])
    for engine in dict.fromkeys(map(_engine, result.descriptions)):
        peer = {column: best_speed(result, engine, column) for column in columns}
        if engine != "ours" and any(ours[column] and peer[column] for column in columns):
            ratios = (_ratio(ours[column], peer[column]) for column in columns)
            rows.append([f"**ours / best of {engine}**", *ratios, "", ""])
    return markdown(rows)


def best_speed(result: DecodePrefill, engine: str, column: tuple[str, int]) -> float | None:
    """The highest median tok/s that a variant of ``engine`` has in ``column`` (phase, tokens); None without samples."""
    cells = (result.cell(label, *column) for label in result.descriptions if _engine(label) == engine)
    return max((cell.speed[0] for cell in cells if cell and cell.samples), default=None)


def _engine(label: str) -> str:
    return label.split(" ", 1)[0]


def _figure(cell: Cell | None, ours: float | None) -> str:
    if cell is None:
        return ""
    if not cell.samples:
        return "gap"
    speed, spread = cell.speed
    text = f"{speed:.0f} ±{50 * spread:.0f} %"
    return text if ours is None else f"{text} ({ours / speed:.2f}x)"


def _ratio(ours: float | None, peer: float | None) -> str:
    return f"**{ours / peer:.2f}x**" if ours and peer else ""


def gaps(result: DecodePrefill) -> list[str]:
    """Why cells have no samples, or fewer: "variant: reason", each once."""
    return list(dict.fromkeys(f"{cell.variant}: {cell.gap}" for cell in result.cells if cell.gap))


def kernel_table(result: Kernels) -> str:
    """Markdown: each kernel's share of the peak that was measured in the same run."""
    rows = [["kernel", "shape", "share", "of", "CPU share"], ["---", "---", "---:", "---", "---:"]]
    for figure in result.figures:
        rows.append([figure.kernel, figure.shape, f"{figure.share:.0%}", figure.unit, f"{figure.sample.own_share:.2f}"])
    return markdown(rows)


def replace_section(document: str, name: str, content: str) -> str:
    """``document`` with ``content`` between its lines ``<!-- begin NAME -->`` and ``<!-- end NAME -->``."""
    pattern = re.compile(rf"(<!-- begin {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
    replaced, count = pattern.subn(lambda match: match[1] + content + "\n" + match[2], document)
    if count != 1:
        raise ValueError(f"the document has {count} sections {name}")
    return replaced


def speed_section(result: DecodePrefill, plot: str) -> str:
    """Everything the page says of one model."""
    notes = [f"- {label}: {description}" for label, description in result.descriptions.items()]
    notes += [f"- gap: {gap}" for gap in gaps(result)]
    image = f"![prefill speed of {result.model} against prompt length]({plot})"
    return "\n\n".join([f"### {result.model}", speed_table(result), image, "\n".join(notes), circumstances(result.run)])


@app.command()
def main(results: Annotated[Path, typer.Option(help="Folder of the JSON files.")] = RESULTS) -> None:
    """Write the sections "speed" and "kernels" of docs/performance.md and "policies" of docs/entropy-inference.md, and
    the plots, anew from the JSON files."""
    page = DOCS / "performance.md"
    document = page.read_text()
    sections = []
    for path in sorted(results.glob("decode_prefill_*.json")):
        result = DecodePrefill.model_validate_json(path.read_text())
        plot = f"performance_{result.model}.svg"
        plot_prefill(result, DOCS / plot)
        sections.append(speed_section(result, plot))
    document = replace_section(document, "speed", "\n\n".join(sections))
    for path in results.glob("kernels.json"):
        kernels = Kernels.model_validate_json(path.read_text())
        document = replace_section(document, "kernels", f"{kernel_table(kernels)}\n\n{circumstances(kernels.run)}")
    page.write_text(document)
    policies = [Policies.model_validate_json(path.read_text()) for path in sorted(results.glob("policies_*.json"))]
    page = DOCS / "entropy-inference.md"
    page.write_text(replace_section(page.read_text(), "policies", "\n\n".join(map(policy_section, policies))))


if __name__ == "__main__":
    app()
