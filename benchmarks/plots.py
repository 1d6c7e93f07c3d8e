"""The plots of docs/performance.md."""

from pathlib import Path

from benchmarks.results_file import DecodePrefill


def plot_prefill(result: DecodePrefill, path: Path) -> None:
    """Prefill tok/s against prompt length, both logarithmic; a line per variant."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = result.model  # the same figures give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for label in result.descriptions:
        cells = [cell for cell in result.cells if cell.variant == label and cell.phase == "prefill" and cell.samples]
        if cells:
            speeds = [cell.speed[0] for cell in cells]
            ours = label.startswith("ours ")
            axes.plot([c.tokens for c in cells], speeds, marker="o", label=label, linewidth=2.5 if ours else 1.2)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({cell.tokens for cell in result.cells if cell.phase == "prefill"})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(
        xlabel="prompt length (tokens)",
        ylabel="prefill (tokens/s)",
        title=f"{result.model}, {result.run.threads} threads",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
