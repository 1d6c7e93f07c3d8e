"""The machine's measured limits, from TVM-compiled kernels: bf16 dot and fp32 FMA throughput, and read bandwidth.

Every kernel benchmark divides by these numbers, taken in the same run: clock rates differ between machines and moments.
"""

from dataclasses import dataclass

import numpy as np
import tvm
from tvm.script import tirx as T
from tvm.target import Target

from benchmarks.huge_pages import huge_page_tensor
from benchmarks.timing import Sample, best_of
from tir_kernels.cpu.isa import VectorISA, vector_isa

_ITERATIONS = 200_000
_READ_BYTES = 512 << 20  # far above any last-level cache slice a core can use


@dataclass(frozen=True)
class Peak:
    """``bf16_gflops`` is None without a bf16 dot instruction; ``read_gbps`` (1e9 B/s) is of memory that no cache holds.
    ``own_share`` is the lowest share of the CPU that one of the measurements had: below 0.9 the machine can do more."""

    bf16_gflops: float | None
    f32_gflops: float
    read_gbps: float
    own_share: float

    @property
    def bf16_kernel_gflops(self) -> float:
        """What a kernel on bfloat16 data is held against: the machine's fastest multiply-add for them."""
        return self.bf16_gflops or self.f32_gflops

    def best_with(self, other: "Peak") -> "Peak":
        """The higher figures of two measurements, to make up for a moment in which the machine was disturbed."""
        dots = [dot for dot in (self.bf16_gflops, other.bf16_gflops) if dot]
        return Peak(
            max(dots, default=None),
            max(self.f32_gflops, other.f32_gflops),
            max(self.read_gbps, other.read_gbps),
            max(self.own_share, other.own_share),
        )


def measure_peak(target: Target, threads: int) -> Peak:
    """Measures all three in about three seconds. ``target`` is that of the kernels under test; TVM must run on
    ``threads`` threads (machine.use_threads)."""
    isa = vector_isa(target)
    dot = _flops(isa, target, threads, bf16=True) if isa.has_bf16_dot else None
    fma = _flops(isa, target, threads, bf16=False)
    read = ReadBandwidth(target, threads).measure()
    gbps = _READ_BYTES / read.seconds / 1e9
    share = min(own_share for _, own_share in filter(None, (dot, fma, (gbps, read.own_share))))
    return Peak(dot and dot[0], fma[0], gbps, share)


def _flops(isa: VectorISA, target: Target, threads: int, bf16: bool) -> tuple[float, float]:
    """GFLOP/s of independent multiply-adds that stay in registers (a multiply-add counts as 2, a bf16 dot of pairs
    as 4), and the own CPU share."""
    lanes = isa.lanes
    chains = isa.num_vector_registers - 8
    words = tvm.runtime.tensor(np.full(2 * lanes, 0x3C003C00, "int32"))  # pairs of 2**-7 in bfloat16
    out = tvm.runtime.tensor(np.zeros((threads, chains * lanes), "float32"))
    kernel = tvm.compile(_multiply_adds(isa, threads, chains, bf16), target=target)["main"]
    best = best_of(lambda: kernel(words, out), threads)
    return threads * _ITERATIONS * chains * lanes * (4 if bf16 else 2) / best.seconds / 1e9, best.own_share


def _multiply_adds(
    isa: VectorISA, threads: int, chains: int, bf16: bool, iterations: int = _ITERATIONS
) -> tvm.IRModule:
    lanes = isa.lanes

    def multiply_add(accumulator, words):
        a, b = words[isa.ramp(0)], words[isa.ramp(lanes)]
        if bf16:
            return isa.dot2(accumulator, a, b)
        return accumulator * T.reinterpret(f"float32x{lanes}", a) + T.reinterpret(f"float32x{lanes}", b)

    @T.prim_func(s_tir=True)
    def main(words: T.Buffer((2 * lanes,), "int32"), out: T.Buffer((threads, chains * lanes), "float32")):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with isa.helpers():
            for thread in T.parallel(threads):
                with T.sblock("chains"):
                    T.reads()
                    T.writes()
                    accumulators = T.sblock_alloc_buffer((chains * lanes,), "float32", scope="local")
                    for i in T.unroll(chains):
                        accumulators[isa.ramp(i * lanes)] = out[thread, isa.ramp(i * lanes)]
                    for _ in T.serial(iterations):
                        for i in T.unroll(chains):
                            accumulators[isa.ramp(i * lanes)] = multiply_add(accumulators[isa.ramp(i * lanes)], words)
                    for i in T.unroll(chains):
                        out[thread, isa.ramp(i * lanes)] = accumulators[isa.ramp(i * lanes)]

    return tvm.IRModule({"main": main})


class ReadBandwidth:
    """How fast threads that each sum their own part of a buffer read it. On a shared machine that changes by the
    minute, so what streams weights is held against a figure taken beside it."""

    def __init__(self, target: Target, threads: int) -> None:
        isa = vector_isa(target)
        data = np.ones(_READ_BYTES // 4, "float32")
        source = huge_page_tensor(data)
        out = tvm.runtime.tensor(np.zeros((threads, isa.lanes), "float32"))
        kernel = tvm.compile(_sum(isa, threads, data.size), target=target)["main"]
        self._read, self._threads = lambda: kernel(source, out), threads

    def measure(self) -> Sample:
        """The fastest read of the buffer within a second."""
        return best_of(self._read, self._threads, budget=1.0)

    def gbps(self) -> float:
        """1e9 bytes a second."""
        return _READ_BYTES / self.measure().seconds / 1e9


def _sum(isa: VectorISA, threads: int, size: int) -> tvm.IRModule:
    """Four streams a thread: with one the tested cores (Zen 4) read 5 % less."""
    lanes, streams, vectors = isa.lanes, 4, 2
    part = size // (threads * streams)
    steps = part // (vectors * lanes)

    @T.prim_func(s_tir=True)
    def main(data: T.Buffer((size,), "float32"), out: T.Buffer((threads, lanes), "float32")):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for thread in T.parallel(threads):
            with T.sblock("sums"):
                T.reads()
                T.writes()
                sums = T.sblock_alloc_buffer((streams * vectors * lanes,), "float32", scope="local")
                for i in T.unroll(streams * vectors):
                    sums[isa.ramp(i * lanes)] = isa.zero()
                for step in T.serial(steps):
                    for s in T.unroll(streams):
                        start: T.let = (thread * streams + s) * part + step * vectors * lanes
                        for v in T.unroll(vectors):
                            place: T.let = (s * vectors + v) * lanes
                            sums[isa.ramp(place)] = sums[isa.ramp(place)] + data[isa.ramp(start + v * lanes)]
                for i in T.unroll(streams * vectors - 1):
                    sums[isa.ramp(0)] = sums[isa.ramp(0)] + sums[isa.ramp((i + 1) * lanes)]
                out[thread, isa.ramp(0)] = sums[isa.ramp(0)]

    return tvm.IRModule({"main": main})
