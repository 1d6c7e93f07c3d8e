"""The picture of a report: scores by category, retrieval by length, log-likelihood against the baseline."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.summary import Summary


def write_plot(summary: Summary, path: Path) -> None:
    """Write a PNG."""
    figure = Figure(figsize=(16, 4.8), layout="constrained")
    axes = figure.subplots(1, 3)
    _scores(axes[0], summary)
    _retrieval(axes[1], summary)
    _likelihood(axes[2], summary)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(summary.policies))
    figure.savefig(path, dpi=120)


def _scores(axes: Axes, summary: Summary) -> None:
    names = [f"{line.name}\n({line.rows})" for line in summary.categories]
    width = 0.8 / len(summary.policies)
    for number, policy in enumerate(summary.policies):
        places = [place + (number - (len(summary.policies) - 1) / 2) * width for place in range(len(names))]
        axes.bar(places, [100 * line.means[policy] for line in summary.categories], width, label=policy)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("score")
    axes.set_title("score by category (rows)")


def _retrieval(axes: Axes, summary: Summary) -> None:
    axes.set_title("retrieval by prompt length")
    lines = summary.retrieval_by_length
    if not lines:
        axes.text(0.5, 0.5, "no retrieval rows", ha="center", transform=axes.transAxes)
        return
    for policy in summary.policies:
        axes.plot([line.name for line in lines], [100 * line.means[policy] for line in lines], marker="o")
    axes.set_ylim(-3, 103)
    axes.set_xlabel("tokens")
    axes.set_ylabel("hits, %")


def _likelihood(axes: Axes, summary: Summary) -> None:
    axes.set_title(f"log-likelihood a token, against {summary.baseline} (95 %)")
    lines = summary.log_likelihood
    others = [policy for policy in summary.policies if all(policy in line.interval for line in lines)]
    if not others:
        axes.text(0.5, 0.5, f"nothing beside {summary.baseline}", ha="center", transform=axes.transAxes)
        return
    axes.axhline(0.0, color="grey", linewidth=0.8)
    for number, policy in enumerate(others):
        intervals = [line.interval[policy] for line in lines]
        means = [interval.mean for interval in intervals]
        below = [interval.mean - interval.low for interval in intervals]
        above = [interval.high - interval.mean for interval in intervals]
        places = [place + (number - (len(others) - 1) / 2) * 0.6 / len(others) for place in range(len(lines))]
        color = f"C{summary.policies.index(policy)}"
        axes.errorbar(places, means, (below, above), fmt="o", capsize=3, color=color)
    axes.set_xticks(range(len(lines)), [line.name for line in lines])
