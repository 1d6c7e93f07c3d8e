"""The table of one long prompt, in ratios to the same run."""

from __future__ import annotations

from statistics import median

from benchmarks.long_prompt_store import Decode, LongPrompt, Stretch
from benchmarks.markdown import circumstances, markdown

_REFERENCE = 100_000  # the position that costs are compared with
_HALVINGS = 6  # rows between the first and the last: the prompt halved so many times
_QUARTERS = (0.25, 0.75)


def seconds_per_token(stretch: Stretch) -> float:
    return stretch.sample.seconds / (stretch.end - stretch.begin)


def reference(record: LongPrompt) -> Stretch:
    """The stretch that holds token 100,000, or the middle of a prompt that is shorter than twice that."""
    position = min(_REFERENCE, record.tokens // 2)
    return next(s for s in record.stretches if s.end > position)


def shown(record: LongPrompt) -> list[Stretch]:
    """The stretches of the table: first, reference, last, and those that end nearest to halves of the prompt."""
    ends = [record.tokens >> halving for halving in range(_HALVINGS)]
    ends += [round(share * record.tokens) for share in _QUARTERS]
    chosen = {min(record.stretches, key=lambda s: abs(s.end - end)).begin for end in ends}
    chosen |= {record.stretches[0].begin, reference(record).begin}
    return [stretch for stretch in record.stretches if stretch.begin in chosen]


def long_prompt_section(record: LongPrompt, plot_name: str | None) -> str:
    """Everything the page says of one prompt; without a plot for ``plot_name`` None."""
    repeated = f", {record.copies:.2f} copies of it one after the other" if record.copies > 1 else ""
    settings = f" with {record.settings}" if record.settings else ""
    parts = [
        f"### {record.model}, {record.tokens:,} tokens",
        f"Read from {record.text}{repeated}; {record.policy}{settings}; RoPE `{record.rope}`.",
        _cost_table(record),
    ]
    if plot_name:
        parts.append(f"![cost of a token and share of keys attended, by position]({plot_name})")
    parts += [_memory(record), _needle_table(record), _after_the_prompt(record)]
    parts += [circumstances(record.runs[index]) for index in sorted({s.run for s in record.stretches})]
    return "\n\n".join(part for part in parts if part)


def _cost_table(record: LongPrompt) -> str:
    base = reference(record)
    rows = [
        ["tokens of the prompt", f"cost of a token (1 = at {base.end:,})", "earlier keys attended to", "CPU share"],
        ["---", "---:", "---:", "---:"],
    ]
    for stretch in shown(record):
        attended = "" if stretch.attended is None else f"{stretch.attended:.1%}"
        cost = seconds_per_token(stretch) / seconds_per_token(base)
        rows.append(
            [f"{stretch.begin:,} to {stretch.end:,}", f"{cost:.2f}", attended, f"{stretch.sample.own_share:.2f}"]
        )
    return markdown(rows)


def _memory(record: LongPrompt) -> str:
    samples = [s.sample for s in record.stretches] + [d.sample for d in record.decode]
    peak = max(sample.peak_rss_bytes for sample in samples)
    cache = record.kv_bytes_per_token * record.position
    lines = [
        f"Peak memory of the process {peak / 1e9:.2f} GB; KV cache with block representatives {cache / 1e9:.2f} GB.",
    ]
    if record.saves and record.saves[-1].tokens == record.tokens:
        save, prefill = record.saves[-1], sum(s.sample.seconds for s in record.stretches)
        lines.append(
            f"The cache takes {save.file_bytes / 1e9:.2f} GB in a file; writing it takes {save.seconds / prefill:.1%} "
            "of the time of its prefill"
        )
        if record.reload:
            same = record.reload.token_ids == record.answers[0].token_ids
            lines.append(
                f"and loading it, checksums compared, {record.reload.seconds / prefill:.1%}. The answer to the first "
                f"question from the loaded cache is {'the same, token for token' if same else '**another one**'}."
            )
        else:
            lines[-1] += "."
    return " ".join(lines)


def _needle_table(record: LongPrompt) -> str:
    if not record.answers:
        return ""
    rows = [
        ["needle, tokens before the question", "trained distance", "found", "answer"],
        ["---:", "---", "---", "---"],
    ]
    for answer in sorted(record.answers, key=lambda a: a.distance):
        near = "within" if answer.distance + answer.question_tokens <= record.trained else "beyond"
        text = " ".join(answer.text.split()).replace("|", "\\|").replace("`", "'")
        rows.append([f"{answer.distance:,}", near, "yes" if answer.hit else "no", f"`{text}`"])
    return (
        f"The model was trained for distances up to {record.trained:,} tokens; a needle farther away than that is not "
        f"expected to be found.\n\n{markdown(rows)}"
    )


def _after_the_prompt(record: LongPrompt) -> str:
    if len(record.decode) < 2:
        return ""
    # The whole cache once; then, by turns, what a compression left and a short prompt.
    whole, kept, short = record.decode[:1], record.decode[1::2], record.decode[2::2]
    text = (
        f"Decoding from the {kept[0].entries:,} entries a head keeps after a compression is "
        f"{_times_as_fast(kept, whole):.1f} times as fast as from all {whole[0].entries:,}"
    )
    if short:
        text += (
            f", and {_times_as_fast(kept, short):.2f} times as fast as from the {short[0].entries:,} of a short prompt"
        )
    if len(short) > 1:
        text += f" (medians of {len(short)} turns)"
    return f"{text}."


def _times_as_fast(decode: list[Decode], other: list[Decode]) -> float:
    return _seconds_per_token(other) / _seconds_per_token(decode)


def _seconds_per_token(decode: list[Decode]) -> float:
    return median(d.sample.seconds / d.tokens for d in decode)
