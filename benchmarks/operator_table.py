"""Where the time of a prefill goes: the table of Speed.operators."""

from benchmarks.markdown import markdown
from benchmarks.store import Operators, Speed

# Kernels of a prefill, as the table names them.
_PARTS = {
    "attention": ("attention_prefill", "attention_gated"),
    "observe and select": ("block_representatives", "observe", "select_blocks"),
}


def operator_table(speed: Speed) -> str:
    """Markdown: a row a variant; shares of the time of its longest prefill, and dense attention (of "ours-dense" at
    that length) as a multiple of its own. Empty without operators."""
    if not speed.operators:
        return ""
    dense = next((o for label, o in speed.operators.items() if label.startswith("ours-dense")), None)
    rows = [["prefill", "tokens", *_PARTS, "everything else", "attention faster by"]]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    for label, operators in speed.operators.items():
        total = sum(operators.seconds.values())
        parts = [_part(operators, part) for part in _PARTS]
        shares = [f"{part / total:.1%}" for part in [*parts, total - sum(parts)]]
        faster = ""
        if dense and dense.tokens == operators.tokens:
            faster = f"{_part(dense, 'attention') / parts[0]:.2f}x"
        rows.append([label, f"{operators.tokens:,}", *shares, faster])
    return markdown(rows)


def _part(operators: Operators, part: str) -> float:
    return sum(operators.seconds.get(kernel, 0.0) for kernel in _PARTS[part])
