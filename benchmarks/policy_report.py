"""The tables of a run of benchmarks.policies."""

from benchmarks.markdown import circumstances, markdown
from benchmarks.results_file import Policies

# Kernels of a prefill, as the table names them.
_PARTS = {
    "attention": ("attention_prefill", "attention_gated"),
    "observe and select": ("block_representatives", "observe", "select_blocks"),
}


def policy_table(result: Policies) -> str:
    """Markdown: a row a policy; median tok/s by phase and length, and as a multiple of the first policy, dense."""
    columns = list(dict.fromkeys((cell.phase, cell.tokens) for cell in result.cells))
    columns.sort(key=lambda column: (column[0] == "decode", column[1]))
    first = next(iter(result.settings))
    rows = [["tok/s", *(f"{phase} {'@ ' if phase == 'decode' else ''}{tokens}" for phase, tokens in columns)]]
    rows.append(["---", *["---:"] * len(columns)])
    for name in result.settings:
        figures = []
        for column in columns:
            speed, spread = result.cell(name, *column).speed
            base = result.cell(first, *column).speed[0]
            ratio = "" if name == first else f" ({speed / base:.2f}x)"
            figures.append(f"{speed:.0f} ±{50 * spread:.0f} %{ratio}")
        rows.append([name, *figures])
    return markdown(rows)


def operator_table(result: Policies) -> str:
    """Markdown: a row a policy; shares of the time of a long prefill, and dense attention as a multiple of its own."""
    first = next(iter(result.settings))
    dense_attention = _part(result.operators[first], "attention")
    rows = [[f"prefill of {result.operator_tokens} tokens", *_PARTS, "everything else", "attention faster by"]]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    for name, seconds in result.operators.items():
        total = sum(seconds.values())
        parts = [_part(seconds, part) for part in _PARTS]
        shares = [f"{part / total:.1%}" for part in [*parts, total - sum(parts)]]
        rows.append([name, *shares, f"{dense_attention / parts[0]:.2f}x"])
    return markdown(rows)


def policy_section(result: Policies) -> str:
    """Everything the page says of one model."""
    notes = [f"- {name}: {text or 'as compiled'}" for name, text in result.settings.items()]
    parts = [f"### {result.model}", policy_table(result), operator_table(result), "\n".join(notes)]
    return "\n\n".join([*parts, circumstances(result.run)])


def _part(seconds: dict[str, float], part: str) -> float:
    return sum(seconds.get(kernel, 0.0) for kernel in _PARTS[part])
