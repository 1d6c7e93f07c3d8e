"""Where the time of a prefill goes: the table of Speed.operators."""

from benchmarks.markdown import markdown
from benchmarks.store import Operators, Speed

# Kernels of a prefill, as the table names them.
_PARTS = {
    "attention": ("attention_prefill", "attention_gated"),
    "observe and select": ("block_representatives", "observe", "select_blocks"),
}


def operator_table(speed: Speed) -> str:
    """Markdown: a row a length and variant; shares of the time of the prefill, and dense attention (of "ours-dense" at
    that length) as a multiple of its own. Empty without operators."""
    if not speed.operators:
        return ""
    dense = {o.tokens: _part(o, "attention") for o in speed.operators if o.variant.startswith("ours-dense")}
    rows = [["prefill", "tokens", *_PARTS, "everything else", "attention faster by"]]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    for operators in sorted(speed.operators, key=lambda o: (o.tokens, o.variant)):
        total = sum(operators.seconds.values())
        parts = [_part(operators, part) for part in _PARTS]
        shares = [f"{part / total:.1%}" for part in [*parts, total - sum(parts)]]
        faster = f"{dense[operators.tokens] / parts[0]:.2f}x" if operators.tokens in dense else ""
        rows.append([operators.variant, f"{operators.tokens:,}", *shares, faster])
    return markdown(rows)


def _part(operators: Operators, part: str) -> float:
    return sum(operators.seconds.get(kernel, 0.0) for kernel in _PARTS[part])
