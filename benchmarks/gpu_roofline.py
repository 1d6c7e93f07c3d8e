"""A roofline on paper: how fast each kernel could be on a device, by its data sheet. Nothing here is timed."""

from dataclasses import dataclass

from benchmarks.gpu_work import Work, compression_work, decode_work, prefill_work
from benchmarks.markdown import markdown
from relax_models.config import ModelConfig
from runtime.policy import Policy


@dataclass(frozen=True)
class Device:
    """Peaks a second; ``driver_name`` is in what the driver calls it.

    ``matrix_flops`` are dense 16-bit products with 32-bit sums, as far as our instructions reach them;
    ``peak_flops`` what the data sheet says of those.
    """

    name: str
    bandwidth: float
    vector_flops: float
    matrix_flops: float
    peak_flops: float
    exponentials: float
    driver_name: str | None = None


# Dense products of 16-bit operands with 32-bit sums, everywhere.
# H100 SXM5: NVIDIA H100 data sheet (3.35 TB/s; 1,979 TFLOPS with sparsity), "NVIDIA H100 Tensor Core GPU Architecture"
#   (989.4 dense, 66.9 float32, 132 multiprocessors at 1.83 GHz).
# RTX 4090: "NVIDIA Ada GPU Architecture" 2.02, appendix A, table 2 (165.2 with float32 sums, 82.6, 1,008 GB/s, 128
#   multiprocessors at 2.52 GHz).
# M3 Max with 40 cores: Apple's technical specifications of the MacBook Pro, November 2023 (400 GB/s). Apple tells no
#   rates: 128 lanes a core at 1.38 GHz (collections of GPU data say 1.38 to 1.40). Simdgroup matrices are instructions
#   of the same float32 pipelines (github.com/philipturner/metal-benchmarks, of the M1 and M2; no source for the M3 was
#   found): they come closer to the rate of FMAs, and not above it.
# mma.sync on an H100: 62.9 % of the tensor cores on average, whose own instruction is wgmma (Luo et al.,
#   arXiv:2501.12084, measured on an H800).
# Exponentials: 16 a clock and multiprocessor (CUDA C++ Programming Guide, throughput of native arithmetic
#   instructions); Apple a quarter of the lanes (github.com/philipturner/metal-benchmarks, of the M1 and M2).
DEVICES = (
    Device("H100 SXM", 3.35e12, 66.9e12, 0.629 * 989.4e12, 989.4e12, 3.9e12, "H100 80GB HBM3"),
    Device("RTX 4090", 1.008e12, 82.6e12, 165.2e12, 165.2e12, 5.2e12, "RTX 4090"),
    Device("M3 Max", 400e9, 14.1e12, 14.1e12, 14.1e12, 1.8e12),
)


def device_named(name: str) -> Device | None:
    """The data sheet of the GPU that NVIDIA's driver calls ``name``, None if it is not here."""
    return next((device for device in DEVICES if device.driver_name and device.driver_name in name), None)


def least_seconds(work: Work, device: Device) -> tuple[float, str]:
    """No kernel does ``work`` faster on ``device``; and what it is that bounds it."""
    rate = device.matrix_flops if work.matrix else device.vector_flops
    return max(
        (work.bytes / device.bandwidth, "memory"),
        (work.flops / rate, "products"),
        (work.exponentials / device.exponentials, "exponentials"),
    )


def share_of_peak(work: Work, device: Device) -> float:
    """At most this share of the data sheet's 16-bit products a second."""
    return work.flops / least_seconds(work, device)[0] / device.peak_flops


def roofline_table(works: list[Work]) -> str:
    """Markdown: bytes and FLOPs of each kernel; on each device the least time, its bound and the share of peak."""
    header = ["kernel", "MB", "GFLOP", "FLOP / byte", *(device.name for device in DEVICES)]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for work in works:
        cells = [work.kernel, f"{work.bytes / 1e6:.3g}", f"{work.flops / 1e9:.3g}", f"{work.flops / work.bytes:.3g}"]
        for device in DEVICES:
            seconds, bound = least_seconds(work, device)
            cells.append(f"{seconds * 1e6:.3g} us, {bound}, {share_of_peak(work, device):.0%}")
        rows.append(cells)
    return markdown(rows)


def roofline_section(name: str, config: ModelConfig, policy: Policy, context: int, chunk: int) -> str:
    """The tables of one layer of a model: the last prefill chunk of a context, decoding behind it, compressing it."""
    past = context - chunk
    dense, compressed = decode_work(config, context), decode_work(config, policy.capacity)
    compressed = [work for work in compressed if work.kernel == "attention_decode"]
    return "\n\n".join(
        [
            f"A layer of {name}, 16 bits, 4-bit weights. Prefill of {chunk:,} tokens behind {past:,}:",
            roofline_table(prefill_work(config, policy, past, chunk)),
            f"Decoding one token behind {context:,}:",
            roofline_table(dense),
            f"Decoding one token behind {policy.capacity:,} entries that compression kept:",
            roofline_table(compressed),
            f"Compressing {context:,} entries a head:",
            roofline_table(compression_work(config, policy, context)),
        ]
    )
