"""The peak kernels do the work that their figures claim: everything else is divided by these."""

import numpy as np
import pytest
import tvm
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu

from benchmarks import peak
from tir_kernels.cpu.isa import vector_isa

TARGET = Target({"kind": "llvm", "mcpu": llvm_get_system_cpu()})
ISA = vector_isa(TARGET)
WORDS = np.full(2 * ISA.lanes, 0x3C003C00, "int32")


@pytest.mark.parametrize("threads", [1, 2])
def test_every_byte_is_read(threads):
    data = np.arange(threads * 8 * ISA.lanes * 100, dtype="float32") % 7
    out = tvm.runtime.tensor(np.full((threads, ISA.lanes), np.nan, "float32"))
    tvm.compile(peak._sum(ISA, threads, data.size), target=TARGET)["main"](tvm.runtime.tensor(data), out)
    np.testing.assert_array_equal(out.numpy(), data.reshape(threads, -1, ISA.lanes).sum(1))


@pytest.mark.parametrize("bf16", [True, False])
def test_every_multiply_add_is_done(bf16):
    start = np.arange(2 * 3 * ISA.lanes, dtype="float32").reshape(2, -1)
    out = tvm.runtime.tensor(start)
    tvm.compile(peak._multiply_adds(ISA, 2, 3, bf16, iterations=1000), target=TARGET)["main"](
        tvm.runtime.tensor(WORDS), out
    )
    factor = WORDS[:1].view("float32").astype("float64") if not bf16 else None
    if bf16:  # a pair of 2**-7 times a pair of 2**-7 adds 2**-13
        expected = start + 1000 * 2.0**-13
    else:
        expected = np.full(start.shape, factor / (1 - factor))
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5)
