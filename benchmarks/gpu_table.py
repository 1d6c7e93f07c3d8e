"""The tables of docs/gpu.md: what the kernels of a CUDA library take of a GPU, and how fast they could be on paper."""

from itertools import groupby
from pathlib import Path

from benchmarks.gpu_resources import KernelResources
from benchmarks.gpu_roofline import roofline_section
from benchmarks.markdown import markdown
from benchmarks.report import DOCS, replace_section
from relax_models.presets import PRESETS
from runtime.policy import make_policy

ROOFLINE_MODEL = PRESETS["qwen2.5-7b"]
CONTEXT, CHUNK = 32768, 2048  # tokens


def resource_table(kernels: list[KernelResources]) -> str:
    """Markdown, a row for each kernel of ``kernels`` (sorted by name): what all architectures share, then each one's
    registers of a thread and occupancy."""
    archs = sorted({kernel.arch for kernel in kernels})
    header = ["kernel", "threads", "shared memory", "local memory", "HMMA", "LDGSTS", *(f"sm_{arch}" for arch in archs)]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for name, group in groupby(kernels, key=lambda kernel: kernel.kernel):
        by_arch = {kernel.arch: kernel for kernel in group}
        most = {
            field: max(getattr(kernel, field) for kernel in by_arch.values())
            for field in ("threads", "shared_memory", "stack", "tensor_products", "async_copies")
        }
        cells = [f"{k.registers} ({k.occupancy:.0%})" if k else "" for k in map(by_arch.get, archs)]
        rows.append([name.removesuffix("_kernel"), *map(str, most.values()), *cells])
    return markdown(rows)


def write_gpu_docs(library: Path, kernels: list[KernelResources], docs: Path = DOCS) -> None:
    """Writes the generated sections of docs/gpu.md anew."""
    page = docs / "gpu.md"
    intro = f"Of `{library.name}`; registers of a thread and, in brackets, occupancy. Sizes in bytes."
    document = replace_section(page.read_text(), "resources", f"{intro}\n\n{resource_table(kernels)}")
    section = roofline_section(ROOFLINE_MODEL.display_name, ROOFLINE_MODEL.config, make_policy(), CONTEXT, CHUNK)
    page.write_text(replace_section(document, "roofline", section))
