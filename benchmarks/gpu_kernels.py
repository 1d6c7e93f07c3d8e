"""``python -m benchmarks kernels --device cuda``: a layer's kernels on this GPU, beside the roofline on paper."""

import tempfile
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from statistics import mean

import numpy as np
import tvm

from benchmarks.gpu_roofline import device_named, least_seconds
from benchmarks.gpu_work import Work, decode_work, layer_budgets, prefill_work
from benchmarks.kernel_calls import (
    RNG,
    UNCACHED_BYTES,
    Place,
    decode_attention,
    gated_attention,
    prefill_attention,
    random,
)
from benchmarks.markdown import markdown
from benchmarks.store import GpuFigure, GpuKernels, this_run
from benchmarks.timing import best_of
from passes.gpu_kernels import gpu_kernels
from passes.packaging.cuda_code import cuda_as_source, embed_device_code
from passes.packaging.cuda_toolkit import find_cuda_toolkit
from passes.schedule_gpu import ScheduleGPU
from passes.target import parse_target
from relax_models.config import ModelConfig
from runtime.policy import Policy
from tir_kernels.gpu.features import gpu_features

_FLOAT16 = np.dtype(np.float16)


def gpu_place(device: tvm.runtime.Device) -> Place:
    """Kernels in float16, compiled for CUDA ``device`` as a library's are. UserError without nvcc."""
    target = parse_target("cuda")
    arch = int(device.compute_version.replace(".", ""))
    toolkit = find_cuda_toolkit([arch])

    def compiled(func: tvm.tirx.PrimFunc):
        module = ScheduleGPU(target)(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}))
        with target, cuda_as_source():
            built = tvm.compile(module, target=target)
        embed_device_code(built.mod, lambda source: toolkit.fatbin(source, [arch]))
        with tempfile.TemporaryDirectory() as folder:  # code that was embedded is found by what was linked
            path = str(Path(folder, "kernel.so"))
            built.export_library(path)
            return tvm.runtime.load_module(path)["main"]

    def tensor(array: np.ndarray) -> tvm.runtime.Tensor:
        return tvm.runtime.tensor(array, device)

    return Place(gpu_kernels(gpu_features(target)), _FLOAT16, compiled, tensor, tensor)


def kernel_calls(
    place: Place, config: ModelConfig, policy: Policy, context: int, chunk: int
) -> Iterator[tuple[str, Work, Callable[[], None]]]:
    """(step, its least work, call) of the kernels that take the time of a layer: of the last ``chunk`` tokens of a
    prompt of ``context``, and of decoding behind it."""
    heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    past = context - chunk
    prefill = {work.kernel: work for work in prefill_work(config, policy, past, chunk)}
    decode = {work.kernel: work for work in decode_work(config, context)}
    for step, works, rows in (("prefill", prefill, chunk), ("decode", decode, 1)):
        for work in works.values():
            if work.matrix_shape:
                yield step, work, _linear(place, *work.matrix_shape, rows)
    yield "prefill", prefill["attention_prefill"], prefill_attention(place, *heads, past, chunk)
    budget = round(mean(layer_budgets(config, policy)))
    yield "prefill", prefill["attention_gated"], gated_attention(place, *heads, past, chunk, 0, budget)
    yield "decode", decode["attention_decode"], decode_attention(place, *heads, context)


def _linear(place: Place, k: int, n: int, rows: int) -> Callable[[], None]:
    compiled = place.compiled(place.kernels.linear(n, k, "q4", place.dtype.name, m=1 if rows == 1 else None))
    codes = RNG.integers(0, 1 << 32, (n, k // 8), np.uint32)
    scales = random(place.dtype, n, k // 32)
    copies = UNCACHED_BYTES // (codes.nbytes + scales.nbytes) + 1 if rows == 1 else 1
    weights = cycle([(place.stored(codes), place.stored(scales)) for _ in range(copies)])
    x, out = place.tensor(random(place.dtype, rows, k)), place.tensor(np.zeros((rows, n), place.dtype))
    return lambda: compiled(x, *next(weights), out)


def measure_gpu_kernels(
    name: str, config: ModelConfig, policy: Policy, context: int, chunk: int, say: Callable[[str], None]
) -> GpuKernels:
    """Times of the kernels of a layer of the model ``name``; the GPU must be there (options.checked_device)."""
    run = this_run(1, "normal", None, "cuda")
    device = tvm.cuda(0)
    result = GpuKernels(run=run, model=name, context=context, chunk=chunk, figures=[])
    for step, work, call in kernel_calls(gpu_place(device), config, policy, context, chunk):
        seconds = best_of(call, 1, wait=device.sync).seconds
        figure = GpuFigure(step=step, kernel=work.kernel, bytes=work.bytes, flops=work.flops, seconds=seconds)
        if data_sheet := device_named(str(run.machine["GPU"])):
            figure.least_seconds, figure.bound = least_seconds(work, data_sheet)
        result.figures.append(figure)
        say(f"{step:8s} {work.kernel:24s} {seconds * 1e6:10.1f} us")
    return result


def gpu_kernel_table(result: GpuKernels) -> str:
    """Markdown: time of each kernel, what it reached by its least work, and the time on paper as a share of it."""
    rows = [["step", "kernel", "us", "TFLOP/s", "GB/s", "on paper, us", "bound", "reached"]]
    rows.append(["---", "---", *["---:"] * 4, "---", "---:"])
    for figure in result.figures:
        rates = (figure.flops / figure.seconds / 1e12, figure.bytes / figure.seconds / 1e9)
        row = [figure.step, figure.kernel, f"{figure.seconds * 1e6:.3g}", *(f"{rate:.3g}" for rate in rates)]
        if figure.least_seconds is None:
            row += ["", "", ""]
        else:
            least = figure.least_seconds
            row += [f"{least * 1e6:.3g}", figure.bound, f"{least / figure.seconds:.0%}"]
        rows.append(row)
    return markdown(rows)


def gpu_kernel_section(result: GpuKernels) -> str:
    """The table with what it is of."""
    return (
        f"A layer of {result.model}, float16, 4-bit weights: the last {result.chunk:,} tokens of a prompt of"
        f" {result.context:,}, and decoding behind it.\n\n{gpu_kernel_table(result)}"
    )
