"""The plots of docs/performance.md."""

from pathlib import Path

from benchmarks.store import Speed
from benchmarks.tables import DECODE, MEMORY, Metric, variants


def plot(speed: Speed, path: Path) -> None:
    """Time to first token, decode speed and peak memory against the length of the prompt; a line per variant.

    Crosses are predicted.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = speed.model  # the same figures give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(16, 5.5), layout="constrained")
    first_token = Metric(
        "",
        "",
        lambda m: m.prefill.seconds if m.prefill else None,
        lambda gap: gap.prefill_seconds,
        False,
    )
    titles = ("time to first token (s)", "decode (tokens/s)", "peak memory (MiB)")
    for axis, metric, title in zip(axes, (first_token, DECODE, MEMORY), titles, strict=True):
        for color, label in enumerate(variants(speed)):
            _line(axis, speed, metric, label, f"C{color}" if color < 10 else f"C{color - 10}")
        axis.set_xscale("log", base=2)
        ticks = sorted({m.tokens for m in speed.measurements})
        axis.set_xticks(ticks, [str(tick) for tick in ticks], rotation=45)
        axis.minorticks_off()
        axis.set(xlabel="prompt (tokens)", title=title)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_yscale("log")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    figure.suptitle(f"{speed.model}, {speed.runs[-1].threads} threads")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _line(axis, speed: Speed, metric: Metric, label: str, color: str) -> None:
    lengths = sorted({m.tokens for m in speed.measurements} | {gap.tokens for gap in speed.gaps})
    style = {"color": color, "linewidth": 2.5 if label.startswith("ours") else 1.2}
    style["linestyle"] = "--" if " Q4_0 " in label else "-"
    points = [(n, found[0]) for n in lengths if (found := metric.figure(speed, label, n))]
    axis.plot([n for n, _ in points], [y for _, y in points], marker="o", label=label, **style)
    predicted = [(n, y) for n in lengths if (y := metric.prediction(speed, label, n))]
    if predicted:
        axis.plot([n for n, _ in predicted], [y for _, y in predicted], marker="x", linestyle="", color=color)
