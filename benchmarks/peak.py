"""The machine's measured limits, from TVM-compiled kernels: bf16 dot and fp32 FMA throughput, and read bandwidth.

Every kernel benchmark divides by these numbers, taken in the same run, because clock rates differ between machines and moments.
"""

from dataclasses import asdict, dataclass

import numpy as np
import tvm
from tvm.script import tirx as T
from tvm.target import Target

from benchmarks.timing import best_of
from tir_kernels.cpu.isa import VectorISA, vector_isa

_ITERATIONS = 200_000
_READ_BYTES = 512 << 20  # far above any last-level cache slice a core can use


@dataclass(frozen=True)
class Peak:
    """``bf16_gflops`` is None without a bf16 dot instruction; ``read_gbps`` streams memory that no cache holds (1e9 B/s)."""

    bf16_gflops: float | None
    f32_gflops: float
    read_gbps: float
    threads: int

    def gflops(self, dtype: str) -> float:
        """The peak that a kernel of ``dtype`` is held against: that of its fastest multiply-add on this machine."""
        return self.bf16_gflops if dtype == "bfloat16" and self.bf16_gflops else self.f32_gflops

    def json(self) -> dict:
        return asdict(self)


def measure_peak(target: Target, threads: int) -> Peak:
    """Measures all three in about three seconds. ``target`` is that of the kernels under test; TVM must run on ``threads``
    threads (machine.use_threads)."""
    isa = vector_isa(target)
    return Peak(
        _flops(isa, target, threads, bf16=True) if isa.has_bf16_dot else None,
        _flops(isa, target, threads, bf16=False),
        _read_bandwidth(isa, target, threads),
        threads,
    )


def _flops(isa: VectorISA, target: Target, threads: int, bf16: bool) -> float:
    """GFLOP/s of independent multiply-adds that stay in registers (a multiply-add counts as 2, a bf16 dot of pairs as 4)."""
    lanes = isa.lanes
    chains = isa.num_vector_registers - 8
    words = tvm.runtime.tensor(np.full(2 * lanes, 0x3C003C00, "int32"))  # pairs of 2**-7 in bfloat16
    out = tvm.runtime.tensor(np.zeros((threads, chains * lanes), "float32"))
    kernel = tvm.compile(_multiply_adds(isa, threads, chains, bf16), target=target)["main"]
    seconds = best_of(lambda: kernel(words, out), threads).seconds
    return threads * _ITERATIONS * chains * lanes * (4 if bf16 else 2) / seconds / 1e9


def _multiply_adds(isa: VectorISA, threads: int, chains: int, bf16: bool, iterations: int = _ITERATIONS) -> tvm.IRModule:
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


def _read_bandwidth(isa: VectorISA, target: Target, threads: int) -> float:
    """GB/s (1e9) of threads that each sum their own contiguous part of a buffer."""
    data = np.ones(_READ_BYTES // 4, "float32")
    source = tvm.runtime.tensor(data)
    out = tvm.runtime.tensor(np.zeros((threads, isa.lanes), "float32"))
    kernel = tvm.compile(_sum(isa, threads, data.size), target=target)["main"]
    seconds = best_of(lambda: kernel(source, out), threads, budget=1.0).seconds
    return data.nbytes / seconds / 1e9


def _sum(isa: VectorISA, threads: int, size: int) -> tvm.IRModule:
    lanes, chains = isa.lanes, 8
    steps = size // (threads * lanes * chains)

    @T.prim_func(s_tir=True)
    def main(data: T.Buffer((size,), "float32"), out: T.Buffer((threads, lanes), "float32")):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for thread in T.parallel(threads):
            with T.sblock("sums"):
                T.reads()
                T.writes()
                sums = T.sblock_alloc_buffer((chains * lanes,), "float32", scope="local")
                for i in T.unroll(chains):
                    sums[isa.ramp(i * lanes)] = isa.zero()
                for step in T.serial(steps):
                    for i in T.unroll(chains):
                        sums[isa.ramp(i * lanes)] = sums[isa.ramp(i * lanes)] + data[isa.ramp(((thread * steps + step) * chains + i) * lanes)]
                for i in T.unroll(chains - 1):
                    sums[isa.ramp(0)] = sums[isa.ramp(0)] + sums[isa.ramp((i + 1) * lanes)]
                out[thread, isa.ramp(0)] = sums[isa.ramp(0)]

    return tvm.IRModule({"main": main})
