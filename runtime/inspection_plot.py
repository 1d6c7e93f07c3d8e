"""The picture of an inspection: three maps with a row for each layer and KV head."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime.inspection import Inspection

_BINS = 256  # of the position axis in the map of kept entries


def plot_inspection(inspection: Inspection, path: Path) -> None:
    """Writes a PNG: entropy by segment, share of the earlier keys attended to by segment, entries kept by position."""
    import matplotlib  # an optional extra, and slow to import

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    layers, segments, heads = inspection.entropy.shape
    rows = layers * heads
    segment_size = inspection.policy.segment_size
    figure, axes = pyplot.subplots(1, 3, figsize=(15, max(4.0, 0.09 * rows + 1.5)), layout="constrained", sharey=True)

    entropy = _by_head(inspection.entropy)
    extent = (0, segments * segment_size, rows - 0.5, -0.5)
    style = {"aspect": "auto", "interpolation": "nearest"}
    threshold = inspection.policy.entropy_threshold
    norm = LogNorm(vmin=threshold / 10, vmax=max(threshold * 100, float(np.nanmax(entropy, initial=1.0))))
    shown = np.ma.masked_invalid(np.maximum(entropy, threshold / 10))
    image = axes[0].imshow(shown, norm=norm, extent=extent, cmap="viridis", **style)
    figure.colorbar(image, ax=axes[0], label="nats")
    rigid = int(inspection.rigid.all(axis=1, where=~np.isnan(inspection.entropy)).sum())
    observed = int((~np.isnan(entropy)).any(axis=1).sum())
    axes[0].set_title(f"Attention entropy of a segment\n{min(rigid, observed)} of {rows} heads are rigid throughout")

    before = np.maximum(np.arange(segments) * segment_size, 1)
    share = _by_head(inspection.budget) / before
    share[:, 0] = 1.0
    image = axes[1].imshow(share, vmin=0, vmax=1, extent=extent, cmap="magma", **style)
    figure.colorbar(image, ax=axes[1], label="share")
    axes[1].set_title(f"Earlier keys attended to\n{inspection.attended.mean():.0%} of a dense prefill")

    length = inspection.prompt_tokens + inspection.completion_tokens
    kept = np.stack([_density(positions, length) for heads_kept in inspection.kept for positions in heads_kept])
    image = axes[2].imshow(kept, vmin=0, vmax=1, extent=(0, length, rows - 0.5, -0.5), cmap="Greens", **style)
    figure.colorbar(image, ax=axes[2], label="share")
    entries = sum(len(positions) for heads_kept in inspection.kept for positions in heads_kept) / rows
    axes[2].set_title(f"Entries kept after decoding\n{entries:,.0f} of {length:,} a head")

    axes[0].set_ylabel("layer")
    axes[0].set_yticks(np.arange(0, rows, heads) + (heads - 1) / 2, range(layers), fontsize=6)
    for axis in axes:
        axis.set_xlabel("position in the prompt")
        axis.xaxis.set_major_locator(MaxNLocator(5))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _by_head(values: np.ndarray) -> np.ndarray:
    """[layers, segments, heads] -> [layers * heads, segments]."""
    layers, segments, heads = values.shape
    return values.transpose(0, 2, 1).reshape(layers * heads, segments)


def _density(positions: np.ndarray, length: int) -> np.ndarray:
    bins = min(_BINS, length)
    edges = np.linspace(0, length, bins + 1)
    slots = np.histogram(np.arange(length), edges)[0]
    return np.histogram(positions, edges)[0] / np.maximum(slots, 1)
