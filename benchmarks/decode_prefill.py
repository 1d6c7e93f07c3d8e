"""``python -m benchmarks.decode_prefill``: prefill and decode speed beside llama.cpp and OpenVINO, on the same ids."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu

from benchmarks.compare import Plan, compare
from benchmarks.machine import raise_priority, run_in_own_session, use_threads
from benchmarks.options import token_counts
from benchmarks.peak import measure_peak
from benchmarks.prompt import prompt_ids
from benchmarks.report import gaps, speed_table
from benchmarks.results_file import RESULTS, Cell, DecodePrefill, this_run, write
from benchmarks.variants import variants
from benchmarks.worker import ENGINES
from runtime.console import user_errors
from runtime.errors import UserError
from runtime.tvm_runtime import usable_cores

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    gguf: Annotated[
        Path,
        typer.Option(help="The model for the peers, and the tokenizer of the prompt.", exists=True, dir_okay=False),
    ],
    model_dir: Annotated[
        list[Path] | None,
        typer.Option(
            help="Our model folder, made of the same GGUF file; may be repeated.", exists=True, file_okay=False
        ),
    ] = None,
    engines: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(ENGINES)}.")] = ",".join(ENGINES),
    prompt_lengths: Annotated[str, typer.Option(help="Prefill lengths in tokens.")] = "512,2048,8192",
    decode_contexts: Annotated[str, typer.Option(help="Tokens in the cache before decoding.")] = "128,4096",
    decode_tokens: Annotated[int, typer.Option(help="Tokens decoded in one sample.")] = 64,
    repeats: Annotated[int, typer.Option(help="Samples of each figure.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of every engine.")] = usable_cores(),
    peer_python: Annotated[str, typer.Option(help="Interpreter that has the peers, if not this one.")] = sys.executable,
    timeout: Annotated[float, typer.Option(help="Seconds after which one sample is given up.")] = 900,
    output: Annotated[
        Path | None, typer.Option(help="Default: benchmarks/results/decode_prefill_<model>.json.")
    ] = None,
) -> None:
    """Measure every engine in turns and write medians, spread and CPU shares as JSON."""
    with user_errors():
        names = _chosen(engines)
        lengths, contexts = (
            token_counts(prompt_lengths, "--prompt-lengths"),
            token_counts(decode_contexts, "--decode-contexts"),
        )
        rows = variants(names, model_dir or [])
        if "ours" in names and not model_dir:
            raise UserError(
                "give --model-dir, the folder that compile.py made of the GGUF file, or leave ours out of --engines"
            )
        prompt = prompt_ids(gguf, max(*lengths, *contexts))
        run_in_own_session()
        plan = Plan(
            gguf=gguf,
            prompt=prompt,
            prompt_lengths=lengths,
            decode_contexts=contexts,
            decode_tokens=decode_tokens,
            repeats=repeats,
            threads=threads,
            our_python=sys.executable,
            peer_python=peer_python,
            quantized_folder=Path("models"),
            timeout=timeout,
        )
        console = Console(highlight=False, soft_wrap=True)
        use_threads(threads)
        priority = raise_priority()
        target = Target({"kind": "llvm", "mcpu": llvm_get_system_cpu()})
        run = this_run(threads, priority, measure_peak(target, threads))
        console.print(f"CPU priority: {priority}; measured {run.peak}")
        descriptions: dict[str, str] = {}

        def on_loaded(label: str, description: str) -> None:
            descriptions[label] = description
            console.print(f"{label}: {description}")

        cells = compare(plan, rows, on_loaded, lambda cell: console.print(_line(cell)))
    result = DecodePrefill(run=run, model=gguf.stem, descriptions=descriptions, cells=cells)
    path = output or RESULTS / f"decode_prefill_{gguf.stem}.json"
    write(result, path)
    console.print(speed_table(result))
    for gap in gaps(result):
        console.print(f"gap: {gap}")
    console.print(f"written to {path}")


def _line(cell: Cell) -> str:
    figure = f"{cell.phase} {cell.tokens:6d}  {cell.variant:24s}"
    if cell.gap is not None:
        return f"{figure} gap: {cell.gap}"
    last = cell.samples[-1]
    speed = cell.count / last.seconds
    return f"{figure} {speed:8.1f} tok/s  own CPU {last.own_share:.2f}, others {last.other_share:.2f}"


def _chosen(engines: str) -> list[str]:
    names = [name.strip() for name in engines.split(",")]
    for name in names:
        if name not in ENGINES:
            raise UserError(f"unknown engine '{name}': choose from {', '.join(ENGINES)}")
    return names


if __name__ == "__main__":
    app()
