"""The plot of one long prompt."""

from pathlib import Path

from benchmarks.long_prompt_store import LongPrompt
from benchmarks.long_prompt_table import reference, seconds_per_token


def plot_long_prompt(record: LongPrompt, path: Path) -> None:
    """Cost of a token, relative to the reference of the table, and the share of earlier keys attended, by position."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = record.model  # the same figures give the same file
    from matplotlib import pyplot

    figure, (cost, share) = pyplot.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    ends = [stretch.end / 1000 for stretch in record.stretches]
    base = reference(record)
    cost.plot(ends, [seconds_per_token(s) / seconds_per_token(base) for s in record.stretches], marker=".")
    cost.set(title=f"cost of a token (1 = at {base.end:,})", xlabel="position (1,000 tokens)", ylim=(0, None))
    attended = [(end, s.attended) for end, s in zip(ends, record.stretches, strict=True) if s.attended]
    share.plot([end for end, _ in attended], [value for _, value in attended], marker=".", color="C1")
    share.set(title="share of earlier keys attended to", xlabel="position (1,000 tokens)", yscale="log", xscale="log")
    for axis in (cost, share):
        axis.grid(alpha=0.3, which="both")
    figure.suptitle(f"{record.model}, {record.tokens:,} tokens, {record.runs[-1].threads} threads")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
