"""``python -m benchmarks.kernels``: the kernels at real shapes, each as a share of the peak of the same run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tvm.target import Target

from benchmarks import kernel_cases as cases
from benchmarks.machine import raise_priority, run_in_own_session, use_threads
from benchmarks.peak import Peak, measure_peak
from benchmarks.report import kernel_table
from benchmarks.results_file import RESULTS, KernelFigure, Kernels, this_run, write
from benchmarks.timing import Sample, best_of
from passes.cpu_target import parse_target
from runtime.console import user_errors
from runtime.tvm_runtime import usable_cores

_HIDDEN, _INTERMEDIATE, _QKV, _VOCABULARY = 896, 4864, 1152, 151936  # Qwen2.5-0.5B
_ROWS = (1, 7, 33, 128, 512, 2048)
_ATTENTION = ((14, 2, 64), (9, 3, 64))  # (q heads, kv heads, head_dim) of Qwen2.5-0.5B and SmolLM2-135M
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _compute_cases(target: Target) -> Iterator[cases.KernelCase]:
    """Those that are bounded by multiply-adds."""
    for weight_format in ("bf16_n32k2", "q4_n32g32"):
        for m in _ROWS[1:]:
            yield cases.swiglu_case(_INTERMEDIATE, _HIDDEN, m, weight_format, target)
            yield cases.linear_case(_HIDDEN, _INTERMEDIATE, m, weight_format, target)
            yield cases.linear_case(_QKV, _HIDDEN, m, weight_format, target)
    for length in (512, 2048, 8192):
        for heads in _ATTENTION:
            yield cases.prefill_attention_case(*heads, length, target)
    yield cases.prefill_attention_case(*_ATTENTION[0], 32768, target)
    for length in (8192, 32768):
        for heads in _ATTENTION:
            yield cases.gated_attention_case(*heads, length, target)


def _streaming_cases(target: Target) -> Iterator[cases.KernelCase]:
    """Those that are bounded by reading weights or the cache."""
    for weight_format in ("bf16_n32k2", "q4_n32g32"):
        yield cases.swiglu_case(_INTERMEDIATE, _HIDDEN, 1, weight_format, target)
        yield cases.linear_case(_HIDDEN, _INTERMEDIATE, 1, weight_format, target)
        yield cases.linear_case(_QKV, _HIDDEN, 1, weight_format, target)
        yield cases.linear_case(_VOCABULARY, _HIDDEN, 1, weight_format, target)
    for length in (4096, 32768):
        for heads in _ATTENTION:
            yield cases.decode_attention_case(*heads, length, target)


@app.command()
def main(
    target: Annotated[str, typer.Option(help="llvm target, as for compile.py.")] = "llvm",
    threads: Annotated[int, typer.Option(help="Threads of every kernel.")] = usable_cores(),
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = RESULTS / "kernels.json",
) -> None:
    """Measure every kernel and write its share of the peak as JSON."""
    with user_errors():
        llvm = parse_target(target)
    run_in_own_session()
    use_threads(threads)
    console = Console(highlight=False, soft_wrap=True)
    priority = raise_priority()
    peak = measure_peak(llvm, threads)
    console.print(f"CPU priority: {priority}; measured {peak}")
    measured = []
    for streaming, all_cases in ((False, _compute_cases(llvm)), (True, _streaming_cases(llvm))):
        for case in all_cases:
            sample = best_of(case.call, threads)
            measured.append(
                (case.kernel, case.shape, streaming, case.streamed_bytes if streaming else case.flops, sample)
            )
            console.print(_line(_figure(peak, *measured[-1])))
    peak = peak.best_with(measure_peak(llvm, threads))
    result = Kernels(run=this_run(threads, priority, peak), figures=[_figure(peak, *row) for row in measured])
    write(result, output)
    console.print(kernel_table(result))
    console.print(f"written to {output}")


def _figure(peak: Peak, kernel: str, shape: str, streaming: bool, work: int, sample: Sample) -> KernelFigure:
    """``work`` is in bytes for a streaming kernel, else in FLOPs."""
    limit = peak.read_gbps if streaming else peak.bf16_kernel_gflops
    unit = "read bandwidth" if streaming else "bf16 multiply-add peak"
    return KernelFigure(kernel=kernel, shape=shape, unit=unit, share=work / sample.seconds / 1e9 / limit, sample=sample)


def _line(figure: KernelFigure) -> str:
    shares = f"own CPU {figure.sample.own_share:.2f}, others {figure.sample.other_share:.2f}"
    return f"{figure.kernel:20s} {figure.shape:40s} {figure.share:6.1%} of {figure.unit}  {shares}"


if __name__ == "__main__":
    app()
