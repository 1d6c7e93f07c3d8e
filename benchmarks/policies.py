"""``python -m benchmarks.policies``: one library under several policies, beside its own dense attention."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu

from benchmarks.machine import raise_priority, run_in_own_session, use_threads
from benchmarks.options import token_counts
from benchmarks.peak import measure_peak
from benchmarks.policy_report import operator_table, policy_table
from benchmarks.prompt import text_ids
from benchmarks.results_file import RESULTS, Cell, Policies, this_run, write
from benchmarks.timing import Stopwatch
from runtime.artifact import find_library, read_chat_config
from runtime.console import user_errors
from runtime.errors import UserError
from runtime.library import ModelLibrary
from runtime.operator_times import OperatorTimes
from runtime.params import load_params
from runtime.policy import Policy
from runtime.sequence import CachedSequence
from runtime.tokenizer import Tokenizer
from runtime.tvm_runtime import usable_cores

DENSE = "dense"
# What dense attention is in a library compiled for another policy.
_DENSE_SETTINGS = "threshold_len=2000000000;decode=full"
# Tokens generated before decoding is timed: the compression that comes within them is paid once a prompt.
_SETTLING_TOKENS = 24

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    model_dir: Annotated[Path, typer.Argument(help="MLC model folder, its library beside it.", metavar="DIR")],
    lengths: Annotated[str, typer.Option(help="Prompt lengths in tokens.")] = "1024,4096,8192,32640",
    dense_lib: Annotated[
        Path | None,
        typer.Option(help="A library compiled with --prefill dense --decode full; default: the same one, not gating."),
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help='"NAME=k=v;k=v" of run-time settings, or "NAME=" for the defaults.')
    ] = None,
    decode_tokens: Annotated[int, typer.Option(help="Tokens decoded in one sample.")] = 64,
    repeats: Annotated[int, typer.Option(help="Samples of each figure.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads.")] = usable_cores(),
    output: Annotated[Path | None, typer.Option(help="Default: benchmarks/results/policies_<model>.json.")] = None,
) -> None:
    """Time prefill and decode of every policy in turns, then the kernels of one prefill of the longest prompt."""
    with user_errors():
        sizes = sorted(set(token_counts(lengths, "--lengths")))
        path = find_library(model_dir)
        settings = {DENSE: "" if dense_lib else _DENSE_SETTINGS}
        settings |= dict(_named(text) for text in policy or ["entropy + latent="])
        libraries = {name: dense_lib if dense_lib and name == DENSE else path for name in settings}
        loaded = {library: _load(library) for library in dict.fromkeys(libraries.values())}
        ids = text_ids(Tokenizer(model_dir), sizes[-1])
        run_in_own_session()
        use_threads(threads)
        console = Console(highlight=False, soft_wrap=True)
        priority = raise_priority()
        run = this_run(
            threads, priority, measure_peak(Target({"kind": "llvm", "mcpu": llvm_get_system_cpu()}), threads)
        )
        params = load_params(model_dir, read_chat_config(model_dir), loaded[path].metadata, path)
        context = sizes[-1] + decode_tokens + _SETTLING_TOKENS + 1
        sequences = {library: CachedSequence(module, params, context) for library, module in loaded.items()}
        variants = {name: (sequences[libraries[name]], text) for name, text in settings.items()}
        cells = _measure(variants, sizes, ids, decode_tokens, repeats, threads, console)
        operators = {
            name: _operators(_load(libraries[name]), params, text, ids, context) for name, text in settings.items()
        }
    result = Policies(
        run=run, model=model_dir.name, settings=settings, cells=cells, operator_tokens=len(ids), operators=operators
    )
    output = output or RESULTS / f"policies_{model_dir.name.removesuffix('-MLC')}.json"
    write(result, output)
    console.print(policy_table(result))
    console.print(operator_table(result))
    console.print(f"written to {output}")


def _named(text: str) -> tuple[str, str]:
    name, equals, settings = text.partition("=")
    if not equals or name == DENSE:
        raise UserError(f'--policy {text}: write "NAME=k=v;k=v" with a name other than {DENSE}')
    return name, settings


def _load(path: Path) -> ModelLibrary:
    library = ModelLibrary(path)
    if library.metadata.policy is None:
        raise UserError(f"{path} has no policy: compile it with this project's compile.py")
    return library


def _start(sequence: CachedSequence, compiled: Policy, settings: str) -> None:
    sequence.clear()
    sequence.set_policy(compiled.changed(settings, compiled) if settings else compiled)


def _measure(
    variants: dict[str, tuple[CachedSequence, str]],
    sizes: list[int],
    ids: list[int],
    decode_tokens: int,
    repeats: int,
    threads: int,
    console: Console,
) -> list[Cell]:
    compiled = {name: sequence.policy for name, (sequence, _) in variants.items()}
    cells = {
        (name, phase, size): Cell(variant=name, phase=phase, tokens=size, count=count or size)
        for size in sizes
        for name in variants
        for phase, count in (("prefill", 0), ("decode", decode_tokens))
    }
    for sequence, _ in variants.values():
        sequence.prefill(ids[:512])
    for _ in range(repeats):
        for size in sizes:
            for name, (sequence, text) in variants.items():
                _start(sequence, compiled[name], text)
                watch = Stopwatch(threads)
                logits = sequence.prefill(ids[:size])
                cells[name, "prefill", size].samples.append(watch.stop())
                for _ in range(_SETTLING_TOKENS):
                    logits = sequence.decode(_best(logits))
                watch = Stopwatch(threads)
                for _ in range(decode_tokens):
                    logits = sequence.decode(_best(logits))
                cells[name, "decode", size].samples.append(watch.stop())
                speeds = ", ".join(f"{p} {cells[name, p, size].speed[0]:.1f} tok/s" for p in ("prefill", "decode"))
                share = cells[name, "prefill", size].samples[-1].own_share
                console.print(f"{size:6d} {name:20s} {speeds}  own CPU {share:.2f}")
                sequence.clear()
    return list(cells.values())


def _operators(library: ModelLibrary, params: Any, settings: str, ids: list[int], context: int) -> dict[str, float]:
    """Seconds by kernel of one prefill of ``ids``."""
    times = OperatorTimes(library)
    sequence = CachedSequence(library, params, context)
    _start(sequence, sequence.policy, settings)
    times.take()
    sequence.prefill(ids)
    return {name: time.seconds for name, time in times.take().items()}


def _best(logits: Any) -> int:
    return int(np.from_dlpack(logits).argmax())


if __name__ == "__main__":
    app()
