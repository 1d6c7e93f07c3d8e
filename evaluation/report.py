"""A summary as Markdown tables, as JSON, and as a plot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evaluation.summary import Summary
from evaluation.table import Line
from runtime.whole_file import replace_file

_Cell = Callable[[Line, str, str], str]  # line, policy, baseline


def markdown(summary: Summary) -> str:
    """All tables."""
    base = summary.baseline
    interval = "difference [95 %, paired bootstrap over rows]"
    full = f"(share of {base}; {interval})"
    parts = [_heading(summary)]
    parts += _section("Totals", summary.totals, summary, f"Means of the tasks, points {full}.", _score)
    parts += _section("Problems solved (pass@1)", summary.solved, summary, "Of so many, with the difference.", _solved)
    parts += _section("Scores by category", summary.categories, summary, f"Means of the tasks {full}.", _score)
    parts += _section("Scores by task", summary.tasks, summary, f"Means over rows (share of {base}).", _share)
    parts += _section(
        "Retrieval by prompt length", summary.retrieval_by_length, summary, f"Points ({interval}).", _points
    )
    parts += _section("Scores by category and prompt length", summary.by_length, summary, f"Points {full}.", _score)
    natural = "Natural logarithm a token of the reference answer; "
    parts += _section("Log-likelihood", summary.log_likelihood, summary, natural + interval + ".", _logarithm)
    by_length = summary.log_likelihood_by_length
    parts += _section("Log-likelihood by prompt length", by_length, summary, natural + interval + ".", _logarithm)
    if (second := summary.second_turn) is not None:
        parts += _section("Second turn: scores", second.scores, summary, f"Means of the tasks {full}.", _score)
        parts += _section("Second turn: tasks", second.tasks, summary, f"Means over rows (share of {base}).", _share)
        title = "Second turn: log-likelihood"
        parts += _section(title, second.log_likelihood, summary, natural + interval + ".", _logarithm)
        caption = "Share of its past that the cache held when the second question had been read, in percent."
        parts += _section("Second turn: entries held", second.kept, summary, caption, _percent)
    parts += _section("Further scores", summary.other_scores, summary, f"Means over rows (share of {base}).", _share)
    return "\n".join(parts) + "\n"


def write_report(summary: Summary, run: dict[str, Any], json_path: Path) -> list[Path]:
    """Write ``json_path`` and, beside it, .md and .png; the files written (no plot without matplotlib)."""
    text = json.dumps({"run": run, "summary": summary.model_dump(mode="json")}, indent=1) + "\n"
    replace_file(json_path, lambda path: path.write_text(text))
    table, plot = json_path.with_suffix(".md"), json_path.with_suffix(".png")
    replace_file(table, lambda path: path.write_text(markdown(summary)))
    try:
        from evaluation.plot import write_plot
    except ModuleNotFoundError:
        return [json_path, table]
    replace_file(plot, lambda path: write_plot(summary, path))
    return [json_path, table, plot]


def _heading(summary: Summary) -> str:
    unfinished = f"; {summary.incomplete_rows} rows are not finished and left out" if summary.incomplete_rows else ""
    lines = [f"{summary.rows} rows, {len(summary.policies)} policies{unfinished}.\n"]
    lines += [f"- {note}" for note in summary.notes]
    return "\n".join(lines) + ("\n" if summary.notes else "")


def _section(title: str, lines: list[Line], summary: Summary, caption: str, cell: _Cell) -> list[str]:
    if not lines:
        return []
    groups, measures = any(line.group for line in lines), any(line.measure for line in lines)
    head = ["category"] * groups + [""] + ["measure"] * measures + ["rows", *summary.policies]
    rows = []
    for line in lines:
        cells = [line.group] * groups + [line.name] + [line.measure] * measures + [str(line.rows)]
        there = {policy: cell(line, policy, summary.baseline) for policy in line.means}
        rows.append(cells + [there.get(policy, "none") for policy in summary.policies])
    return [f"## {title}\n", f"{caption}\n", *_table(head, rows), ""]


def _percent(line: Line, policy: str, _baseline: str) -> str:
    return f"{100 * line.means[policy]:.1f}"


def _share(line: Line, policy: str, baseline: str) -> str:
    share = line.share(policy, baseline)
    text = _percent(line, policy, baseline)
    return text if policy == baseline or share is None else f"{text} ({100 * share:.1f} %)"


def _points(line: Line, policy: str, baseline: str) -> str:
    text = _percent(line, policy, baseline)
    return text if policy == baseline else f"{text} ({_interval(line, policy)})"


def _score(line: Line, policy: str, baseline: str) -> str:
    share = line.share(policy, baseline)
    if policy == baseline or share is None:
        return _points(line, policy, baseline)
    return f"{_percent(line, policy, baseline)} ({100 * share:.1f} %; {_interval(line, policy)})"


def _interval(line: Line, policy: str) -> str:
    interval = line.interval[policy]
    return f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _solved(line: Line, policy: str, baseline: str) -> str:
    count, base = (round(line.means[p] * line.rows) for p in (policy, baseline))
    return f"{count}" if policy == baseline else f"{count} ({count - base:+d})"


def _logarithm(line: Line, policy: str, baseline: str) -> str:
    if policy == baseline or baseline not in line.means:
        return f"{line.means[policy]:.4f}"
    interval = line.interval[policy]
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---" if cell in ("", "category", "measure") else "---:" for cell in head]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]
