"""What the reports of benchmarks/ have in common."""

from benchmarks.store import Run


def markdown(rows: list[list[str]]) -> str:
    """A table; the second row is its rule."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def circumstances(run: Run) -> str:
    """Markdown: command, commit, machine and measured peak of a run, if any. The command is that of the commit."""
    machine = ", ".join(f"{name}: {value}" for name, value in run.machine.items())
    text = f"At commit {run.commit}, {run.date}: `{run.command}`. {machine}; {run.threads} threads, "
    text += f"CPU priority: {run.priority}."
    if (peak := run.peak) is None:
        return text
    dot = f"bf16 dot {peak.bf16_gflops:.0f} GFLOP/s, " if peak.bf16_gflops else ""
    return (
        f"{text} Measured peak: {dot}fp32 FMA {peak.f32_gflops:.0f} GFLOP/s, memory read {peak.read_gbps:.0f} GB/s "
        f"(at a CPU share of {peak.own_share:.2f})."
    )
