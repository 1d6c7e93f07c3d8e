"""A summary as Markdown tables, as JSON, and as a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evaluation.summary import Line, Summary


def markdown(summary: Summary) -> str:
    """All tables."""
    parts = [_heading(summary)]
    base = summary.baseline
    parts += _section("Scores by category", summary.categories, summary, f"mean of the tasks (share of {base})")
    parts += _section("Scores by task", summary.tasks, summary, f"mean over rows (share of {base})")
    parts += _likelihood(summary)
    parts += _section("Retrieval by prompt length", summary.retrieval_by_length, summary, "tokens of the prompt")
    parts += _section("Second-turn questions", summary.second_turn, summary, f"mean over rows (share of {base})")
    parts += _section("Further scores", summary.other_scores, summary, f"mean over rows (share of {base})")
    return "\n".join(parts) + "\n"


def write_report(summary: Summary, run: dict[str, Any], json_path: Path) -> list[Path]:
    """Write ``json_path`` and, beside it, .md and .png; the files written (no plot without matplotlib)."""
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps({"run": run, "summary": summary.model_dump(mode="json")}, indent=1) + "\n")
    table = json_path.with_suffix(".md")
    table.write_text(markdown(summary))
    plot = json_path.with_suffix(".png")
    try:
        from evaluation.plot import write_plot
    except ModuleNotFoundError:
        return [json_path, table]
    write_plot(summary, plot)
    return [json_path, table, plot]


def _heading(summary: Summary) -> str:
    unfinished = f"; {summary.incomplete_rows} rows are not finished and left out" if summary.incomplete_rows else ""
    return f"{summary.rows} rows, {len(summary.policies)} policies{unfinished}.\n"


def _section(title: str, lines: list[Line], summary: Summary, caption: str) -> list[str]:
    if not lines:
        return []
    groups, measures = any(line.group for line in lines), any(line.measure for line in lines)
    head = ["category"] * groups + ["task" if groups else ""] + ["measure"] * measures + ["rows", *summary.policies]
    rows = []
    for line in lines:
        cells = [line.group] * groups + [line.name] + [line.measure] * measures + [str(line.rows)]
        rows.append(cells + [_score(line, policy, summary.baseline) for policy in summary.policies])
    return [f"## {title}\n", f"{caption[0].upper()}{caption[1:]}.\n", *_table(head, rows), ""]


def _score(line: Line, policy: str, baseline: str) -> str:
    text = f"{100 * line.means[policy]:.1f}"
    share = line.share(policy, baseline)
    return text if policy == baseline or share is None else f"{text} ({100 * share:.1f} %)"


def _likelihood(summary: Summary) -> list[str]:
    if not summary.log_likelihood:
        return []
    head = ["", "rows"] + [
        f"{policy}" if policy == summary.baseline else f"{policy} - {summary.baseline} [95 %]"
        for policy in summary.policies
    ]
    rows = []
    for line in summary.log_likelihood:
        cells = [line.name, str(line.rows)]
        for policy in summary.policies:
            if policy == summary.baseline:
                cells.append(f"{line.means[policy]:.4f}")
            else:
                interval = line.interval[policy]
                cells.append(f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]")
        rows.append(cells)
    caption = "Natural logarithm a token of the reference answer; paired bootstrap over rows.\n"
    return ["## Log-likelihood\n", caption, *_table(head, rows), ""]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---" if cell in ("", "category", "task", "measure") else "---:" for cell in head]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]
