"""The tables of one model: what was measured, as Markdown."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.markdown import markdown
from benchmarks.store import Gap, Measurement, Speed
from benchmarks.timing import END_TO_END_TOKENS, median_and_spread


@dataclass(frozen=True)
class Metric:
    """A figure of a measurement, None where it has none, and the same predicted from a gap that has one."""

    title: str
    column: str
    value: Callable[[Measurement], float | None]
    predicted: Callable[[Gap], float | None]
    higher_is_better: bool
    digits: int = 0

    def figure(self, speed: Speed, variant: str, tokens: int) -> tuple[float, float] | None:
        """Median and spread, None without measurements."""
        values = [value for m in speed.of(variant, tokens) if (value := self.value(m)) is not None]
        return median_and_spread(values) if values else None

    def prediction(self, speed: Speed, variant: str, tokens: int) -> float | None:
        """The predicted figure of a generation that was not run for its time."""
        gap = speed.gap(variant, tokens)
        return self.predicted(gap) if gap and gap.prefill_seconds else None

    def times(self, ours: float, other: float) -> float:
        """How many times as good ``ours`` is."""
        return ours / other if self.higher_is_better else other / ours


def _decode_speed(m: Measurement) -> float | None:
    return m.decode_tokens / m.decode.seconds if m.decode else None


def _end_to_end_predicted(gap: Gap) -> float | None:
    step = gap.decode_seconds_per_token
    return gap.prefill_seconds + (END_TO_END_TOKENS - 1) * step if step else None


def _memory(m: Measurement) -> float | None:
    return max(sample.peak_rss_bytes for sample in (m.prefill, m.decode) if sample) / 2**20 or None


PREFILL = Metric(
    "Prefill, tokens a second",
    "prefill",
    lambda m: m.tokens / m.prefill.seconds if m.prefill else None,
    lambda gap: gap.tokens / gap.prefill_seconds,
    True,
)
DECODE = Metric(
    "Decode behind a prompt, tokens a second",
    "decode @",
    _decode_speed,
    lambda gap: 1 / gap.decode_seconds_per_token if gap.decode_seconds_per_token else None,
    True,
    1,
)
END_TO_END = Metric(
    f"End to end: prompt and {END_TO_END_TOKENS} generated tokens, seconds",
    "prompt",
    lambda m: m.end_to_end_seconds,
    _end_to_end_predicted,
    False,
    1,
)
MEMORY = Metric("Peak memory of the process, MiB", "prompt", _memory, lambda gap: None, False)
METRICS = {"prefill": PREFILL, "decode": DECODE, "e2e": END_TO_END, "memory": MEMORY}


def speed_table(speed: Speed, metric: Metric) -> str:
    """A row a variant and a column a length: the median ± half the spread, and (how many times as good the best of
    ours is); then the best of ours beside the best of each peer. Predicted figures are marked "≈". Empty if none."""
    lengths = sorted({m.tokens for m in speed.measurements if metric.value(m) is not None})
    if not lengths:
        return ""
    labels = variants(speed)
    rows = [[metric.title, *(f"{metric.column} {n:,}" for n in lengths), "CPU share"]]
    rows.append(["---", *["---:"] * (len(lengths) + 1)])
    best = {n: _best(speed, metric, "ours", n) for n in lengths}
    for label in labels:
        cells = [_cell(speed, metric, label, n, None if _engine(label) == "ours" else best[n]) for n in lengths]
        if any(cells):
            rows.append([label, *cells, _share(speed, metric, label)])
    for label in labels:
        dense = next((d for d in labels if d.startswith("ours-dense") and d != label), None)
        if _engine(label) == "ours" and dense and not label.startswith("ours-dense"):
            base = {n: metric.figure(speed, dense, n) for n in lengths}
            own = {n: metric.figure(speed, label, n) for n in lengths}
            rows.append(_ratios(metric, f"{label} / {dense}", own, base, lengths))
    ours = {n: (best[n], 0.0) if best[n] else None for n in lengths}
    for engine in dict.fromkeys(map(_engine, labels)):
        peer = {n: _best(speed, metric, engine, n) for n in lengths}
        if engine != "ours" and any(ours[n] and peer[n] for n in lengths):
            other = {n: (peer[n], 0.0) if peer[n] else None for n in lengths}
            rows.append(_ratios(metric, f"ours / best of {engine}", ours, other, lengths))
    return markdown(rows)


def variants(speed: Speed) -> list[str]:
    """Every label, ours first, peers in the order in which they came."""
    labels = dict.fromkeys([m.variant for m in speed.measurements] + [gap.variant for gap in speed.gaps])
    return sorted(labels, key=lambda label: _engine(label) != "ours")


def gaps(speed: Speed) -> list[str]:
    """ "variant at 2,048 tokens: reason", one line for all lengths that have the same reason."""
    reasons: dict[tuple[str, str], list[int]] = {}
    for gap in speed.gaps:
        reasons.setdefault((gap.variant, _reason(gap)), []).append(gap.tokens)
    return [
        f"{label} at {', '.join(f'{n:,}' for n in sorted(ns))} tokens: {why}" for (label, why), ns in reasons.items()
    ]


def answers(speed: Speed) -> str:
    """A row a variant and length: how its answer begins, to see that every engine computes the same thing."""
    rows = [["prompt", "variant", "first generated characters"], ["---:", "---", "---"]]
    for tokens in sorted({m.tokens for m in speed.measurements}):
        for label in variants(speed):
            answer = next((m.answer for m in speed.of(label, tokens) if m.answer), None)
            if answer:
                shown = json.dumps(answer[:60].replace("`", "'"), ensure_ascii=False).replace("|", "\\|")
                rows.append([f"{tokens:,}", label, f"`{shown}`"])
    return markdown(rows) if len(rows) > 2 else ""


def _reason(gap: Gap) -> str:
    if gap.prefill_seconds is None:
        return gap.reason
    lengths = ", ".join(f"{n:,}" for n in gap.measured)
    return f"{gap.reason}; ≈ is the law a n + b n² of the prompt's length n, fitted to {lengths} tokens"


def _engine(label: str) -> str:
    return label.split(" ", 1)[0].split("-", 1)[0] if label.startswith("ours") else label.split(" ", 1)[0]


def _best(speed: Speed, metric: Metric, engine: str, tokens: int) -> float | None:
    figures = []
    for label in variants(speed):
        if _engine(label) == engine:
            figure = metric.figure(speed, label, tokens)
            value = figure[0] if figure else metric.prediction(speed, label, tokens)
            figures += [value] if value else []
    return (max if metric.higher_is_better else min)(figures, default=None)


def _cell(speed: Speed, metric: Metric, label: str, tokens: int, ours: float | None) -> str:
    if figure := metric.figure(speed, label, tokens):
        value, spread = figure
        text = f"{value:,.{metric.digits}f} ±{50 * spread:.0f} %"
    elif value := metric.prediction(speed, label, tokens):
        text = f"≈{value:,.{metric.digits}f}"
    else:
        return "gap" if speed.gap(label, tokens) else ""
    return f"{text} ({metric.times(ours, value):.2f}x)" if ours else text


def _share(speed: Speed, metric: Metric, label: str) -> str:
    """The lowest CPU share of the samples that the row shows."""
    samples = [
        m.decode if metric is DECODE else m.prefill or m.decode
        for m in speed.measurements
        if m.variant == label and metric.value(m) is not None
    ]
    return f"{min(sample.own_share for sample in samples):.2f}" if samples else ""


def _ratios(metric: Metric, name: str, ours: dict, other: dict, lengths: list[int]) -> list[str]:
    cells = [f"**{metric.times(ours[n][0], other[n][0]):.2f}x**" if ours[n] and other[n] else "" for n in lengths]
    return [f"**{name}**", *cells, ""]
