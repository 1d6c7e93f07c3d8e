"""``python -m benchmarks kernels``: the kernels at real shapes, each as a share of the peak of the same run."""

from collections.abc import Callable, Iterator

from tvm.target import Target

from benchmarks import kernel_cases as cases
from benchmarks.kernel_calls import Place
from benchmarks.markdown import markdown
from benchmarks.peak import Peak, measure_peak
from benchmarks.store import KernelFigure, Kernels, this_run
from benchmarks.timing import Sample, best_of

_HIDDEN, _INTERMEDIATE, _QKV, _VOCABULARY = 896, 4864, 1152, 151936  # Qwen2.5-0.5B
_ROWS = (1, 7, 33, 128, 512, 2048)
_ATTENTION = ((14, 2, 64), (9, 3, 64))  # (q heads, kv heads, head_dim) of Qwen2.5-0.5B and SmolLM2-135M


def _compute_cases(place: Place) -> Iterator[cases.KernelCase]:
    """Those that are bounded by multiply-adds."""
    for weight_format in ("bf16_n32k2", "q4_n32g32"):
        for m in _ROWS[1:]:
            yield cases.swiglu_case(place, _INTERMEDIATE, _HIDDEN, m, weight_format)
            yield cases.linear_case(place, _HIDDEN, _INTERMEDIATE, m, weight_format)
            yield cases.linear_case(place, _QKV, _HIDDEN, m, weight_format)
    for length in (512, 2048, 8192):
        for heads in _ATTENTION:
            yield cases.prefill_attention_case(place, *heads, length)
    yield cases.prefill_attention_case(place, *_ATTENTION[0], 32768)
    for length in (8192, 32768):
        for heads in _ATTENTION:
            yield cases.gated_attention_case(place, *heads, length)


def _streaming_cases(place: Place) -> Iterator[cases.KernelCase]:
    """Those that are bounded by reading weights or the cache."""
    for weight_format in ("bf16_n32k2", "q4_n32g32"):
        yield cases.swiglu_case(place, _INTERMEDIATE, _HIDDEN, 1, weight_format)
        yield cases.linear_case(place, _HIDDEN, _INTERMEDIATE, 1, weight_format)
        yield cases.linear_case(place, _QKV, _HIDDEN, 1, weight_format)
        yield cases.linear_case(place, _VOCABULARY, _HIDDEN, 1, weight_format)
    for length in (4096, 32768):
        for heads in _ATTENTION:
            yield cases.decode_attention_case(place, *heads, length)


def measure_kernels(target: Target, threads: int, priority: str, say: Callable[[str], None]) -> Kernels:
    """Every kernel as a share of the better of two measurements of the peak, before and after."""
    peak = measure_peak(target, threads)
    say(f"measured {peak}")
    measured = []
    place = cases.cpu_place(target)
    for streaming, all_cases in ((False, _compute_cases(place)), (True, _streaming_cases(place))):
        for case in all_cases:
            sample = best_of(case.call, threads)
            work = case.streamed_bytes if streaming else case.flops
            measured.append((case.kernel, case.shape, streaming, work, sample))
            say(_line(_figure(peak, *measured[-1])))
    peak = peak.best_with(measure_peak(target, threads))
    return Kernels(run=this_run(threads, priority, peak), figures=[_figure(peak, *row) for row in measured])


def kernel_table(result: Kernels) -> str:
    """Markdown: each kernel's share of the peak that was measured in the same run."""
    rows = [["kernel", "shape", "share", "of", "CPU share"], ["---", "---", "---:", "---", "---:"]]
    for figure in result.figures:
        rows.append([figure.kernel, figure.shape, f"{figure.share:.0%}", figure.unit, f"{figure.sample.own_share:.2f}"])
    return markdown(rows)


def _figure(peak: Peak, kernel: str, shape: str, streaming: bool, work: int, sample: Sample) -> KernelFigure:
    """``work`` is in bytes for a streaming kernel, else in FLOPs."""
    limit = peak.read_gbps if streaming else peak.bf16_kernel_gflops
    unit = "read bandwidth" if streaming else "bf16 multiply-add peak"
    return KernelFigure(kernel=kernel, shape=shape, unit=unit, share=work / sample.seconds / 1e9 / limit, sample=sample)


def _line(figure: KernelFigure) -> str:
    shares = f"own CPU {figure.sample.own_share:.2f}, others {figure.sample.other_share:.2f}"
    return f"{figure.kernel:20s} {figure.shape:40s} {figure.share:6.1%} of {figure.unit}  {shares}"
