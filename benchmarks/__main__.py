"""``python -m benchmarks COMMAND``: speed and memory beside the strongest peers, on the same weights and token ids."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu

from benchmarks import options
from benchmarks.gpu_kernels import gpu_kernel_section, measure_gpu_kernels
from benchmarks.gpu_resources import library_resources, violations
from benchmarks.gpu_table import CHUNK, CONTEXT, ROOFLINE_MODEL, resource_table, write_gpu_docs
from benchmarks.kernels import kernel_table, measure_kernels
from benchmarks.limits import kv_bytes_per_token
from benchmarks.long_prompt_command import long_prompt
from benchmarks.machine import raise_priority, run_in_own_session, use_threads
from benchmarks.measure import Measuring, Plan
from benchmarks.operator_table import operator_table
from benchmarks.peak import ReadBandwidth, measure_peak
from benchmarks.prompt import Prompt
from benchmarks.report import write_docs
from benchmarks.start_up import compile_section, measure_compile, measure_start
from benchmarks.store import RESULTS, Compile, read_speed, this_run, write
from benchmarks.tables import METRICS, gaps, speed_table
from benchmarks.timing import END_TO_END_TOKENS, SETTLING_TOKENS
from benchmarks.variants import PEERS, Variant, chosen, our_variants
from benchmarks.worker import ENGINES
from passes.target import parse_target
from relax_models.config_gguf import config_from_gguf
from runtime.console import user_errors
from runtime.errors import UserError
from runtime.policy import make_policy
from runtime.stop_signals import stop_requests
from runtime.tvm_runtime import usable_cores

_CORES = usable_cores()
_DECODE_TOKENS = 64  # timed, behind the settling ones
_MEASURING = {
    "prefill": (1, "Time to the first token after prompts of several lengths."),
    "decode": (
        1 + SETTLING_TOKENS + _DECODE_TOKENS,
        "Speed of generated tokens behind prompts; gives the other three figures as well.",
    ),
    "e2e": (
        END_TO_END_TOKENS,
        f"Prompt and {END_TO_END_TOKENS} generated tokens; gives prefill and memory as well.",
    ),
    "memory": (1, "Peak memory of each engine's process for a prompt."),
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(highlight=False, soft_wrap=True)


def _measuring_command(name: str, generated: int, summary: str) -> None:
    """A command that generates that many tokens after each prompt; all of them share one file, and what is in it."""

    @app.command(name, help=f"{summary} The same command goes on where it was interrupted.")
    def command(
        gguf: options.Gguf,
        model_dir: options.ModelDirs = None,
        policy: options.Policies = None,
        engines: options.Engines = None,
        device: options.Device = "cpu",
        lengths: options.Lengths = "1024,2048,8192,32512",  # the last leaves room for the answer in 32k
        text: options.Text = None,
        repeats: options.Repeats = 3,
        threads: options.Threads = _CORES,
        max_seconds: options.MaxSeconds = 900,
        operators: Annotated[
            bool, typer.Option("--operators", help="Also where the time of our prefills goes.")
        ] = False,
        python: options.Pythons = None,
        yarn_factor: options.YarnFactor = 4,
        output: options.Output = None,
    ) -> None:
        with user_errors():
            sizes = options.token_counts(lengths, "--lengths")
            rows = _rows(model_dir, policy, engines, options.checked_device(device))
            plan = _plan(gguf, text, sizes, generated, repeats, threads, max_seconds, python, yarn_factor)
            model = gguf.stem if device == "cpu" else f"{gguf.stem}_{device}"
            path = output or RESULTS / f"speed_{model}.json"
            source = text.name if text else f"the standard library of Python {sys.version.split()[0]}"
            speed = read_speed(path, model, source, asdict(config_from_gguf(gguf)), device)
            run_in_own_session()
            use_threads(threads)
            priority = raise_priority()
            peak = measure_peak(_this_cpu(), threads) if device == "cpu" else None
            speed.runs.append(this_run(threads, priority, peak, device))
            console.print(f"CPU priority: {priority}; measured {peak}" if peak else f"CPU priority: {priority}")
            read_gbps = ReadBandwidth(_this_cpu(), threads).gbps if device == "cpu" else None
            measuring = Measuring(plan, speed, lambda: write(speed, path), console.print, read_gbps)
            with _ended_by_signals():
                measuring.run(rows)
                if operators:
                    measuring.operators(rows)
        console.print(speed_table(speed, METRICS[name]))
        if operators:
            console.print(operator_table(speed))
        for gap in gaps(speed):
            console.print(f"gap: {gap}")
        console.print(f"written to {path}")


for _name, (_generated, _summary) in _MEASURING.items():
    _measuring_command(_name, _generated, _summary)


app.command("long-prompt")(long_prompt)


@app.command("compile")
def compile_times(
    gguf: options.Gguf,
    model_dir: options.ModelDirs = None,
    policy: options.Policies = None,
    engines: options.Engines = None,
    repeats: options.Repeats = 3,
    threads: options.Threads = _CORES,
    python: options.Pythons = None,
    output: options.Output = None,
) -> None:
    """Time of compile.py, and of every engine from its start to the first token."""
    with user_errors():
        rows = _rows(model_dir, policy, engines, "cpu")
        plan = _plan(gguf, None, [64], 1, repeats, threads, 900, python, 4)
        run_in_own_session()
        use_threads(threads)
        run = this_run(threads, raise_priority(), measure_peak(_this_cpu(), threads))
        compiled = measure_compile(gguf, repeats, console.print)
        with _ended_by_signals():
            started = measure_start(plan, rows, console.print)
    result = Compile(run=run, model=gguf.stem, compile=compiled, start=started)
    path = output or RESULTS / f"compile_{gguf.stem}.json"
    write(result, path)
    console.print(compile_section(result))
    console.print(f"written to {path}")


@app.command()
def kernels(
    target: Annotated[str, typer.Option(help="llvm target, as for compile.py; on a CPU.")] = "llvm",
    threads: options.Threads = _CORES,
    device: options.Device = "cpu",
    output: options.Output = None,
) -> None:
    """Every kernel as a share of the machine's measured peak; a GPU's beside the roofline on paper."""
    with user_errors():
        if options.checked_device(device) == "cuda":
            model = (ROOFLINE_MODEL.display_name, ROOFLINE_MODEL.config, make_policy(), CONTEXT, CHUNK)
            result = measure_gpu_kernels(*model, console.print)
            path, table = output or RESULTS / "kernels_cuda.json", gpu_kernel_section(result)
        else:
            llvm = parse_target(target)
            run_in_own_session()
            use_threads(threads)
            result = measure_kernels(llvm, threads, raise_priority(), console.print)
            path, table = output or RESULTS / "kernels.json", kernel_table(result)
    write(result, path)
    console.print(table)
    console.print(f"written to {path}")


@app.command("gpu-resources")
def gpu_resources(
    library: Annotated[Path, typer.Argument(help="made by compile.py --target cuda")],
    docs: Annotated[bool, typer.Option(help="Write the table and the roofline into docs/gpu.md.")] = False,
) -> None:
    """What each kernel of a CUDA library takes of a GPU, read from its machine code: no GPU is needed."""
    with user_errors():
        kernels = library_resources(library)
    console.print(resource_table(kernels))
    if docs:
        write_gpu_docs(library, kernels)
    broken = violations(kernels)
    console.print("\n".join(broken) or "no kernel uses local memory or exceeds the limits of a block")
    sys.exit(bool(broken))


@app.command()
def report() -> None:
    """Write the generated sections and plots of docs/ anew from benchmarks/results."""
    write_docs()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the workers before this program."""
    with stop_requests(at_once=True) as stop:
        try:
            yield
        except KeyboardInterrupt:
            raise typer.Exit(128 + (stop.signal or signal.SIGINT)) from None


def _rows(model_dirs: list[Path] | None, policies: list[str] | None, engines: str | None, device: str) -> list[Variant]:
    if engines is None:
        names = ["ours"] if device != "cpu" else list(ENGINES) if model_dirs else [e for e in ENGINES if e != "ours"]
    else:
        names = [name for name in engines.split(",") if name.strip()]
    if not model_dirs and any(name.strip().startswith("ours") for name in names):
        raise UserError("give --model-dir, the folder that compile.py made of the GGUF file, or leave ours out")
    return chosen([*our_variants(model_dirs or [], policies or [], device), *PEERS], ",".join(names))


def _plan(
    gguf: Path,
    text: Path | None,
    lengths: list[int],
    generated: int,
    repeats: int,
    threads: int,
    max_seconds: float,
    python: list[str] | None,
    yarn_factor: float,
) -> Plan:
    config = config_from_gguf(gguf)
    prompt = Prompt(gguf, text, max(lengths))
    return Plan(
        gguf=gguf,
        prompt=prompt.ids,
        decode=prompt.decode,
        lengths=lengths,
        generated=generated,
        repeats=repeats,
        threads=threads,
        pythons=options.interpreters(python or [], ENGINES),
        max_seconds=max_seconds,
        trained=config.max_position_embeddings,
        yarn_factor=yarn_factor,
        kv_bytes_per_token=kv_bytes_per_token(config),
    )


def _this_cpu() -> Target:
    return Target({"kind": "llvm", "mcpu": llvm_get_system_cpu()})


if __name__ == "__main__":
    app()
