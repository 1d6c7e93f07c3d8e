import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T
from with_kernels import with_kernels

from passes.cpu_kernels import cpu_kernels
from passes.fuse_swiglu import FuseSwiGLU
from tir_kernels.cpu.isa import VectorISA
from tir_kernels.cpu.silu_mul import silu_mul

ISA = VectorISA("generic", 4)
KERNELS = cpu_kernels(ISA)


@I.ir_module
class SiluTimesUp:
    @R.function
    def main(x: R.Tensor((1, "n", 192), "bfloat16")):
        with R.dataflow():
            halves = R.split(x, indices_or_sections=2, axis=-1)
            gate = halves[0]
            up = halves[1]
            activation = R.nn.silu(gate)
            y = R.multiply(activation, up)
            R.output(y)
        return y


@I.ir_module
class UpTimesSilu:
    @R.function
    def main(x: R.Tensor((1, "n", 192), "bfloat16")):
        with R.dataflow():
            halves = R.split(x, indices_or_sections=[96], axis=2)
            gate = halves[0]
            up = halves[1]
            activation = R.nn.silu(gate)
            y = R.multiply(up, activation)
            R.output(y)
        return y


@I.ir_module
class Expected:
    @T.prim_func(s_tir=True, private=True)
    def silu_mul(x: T.handle, y: T.handle):
        T.evaluate(0)

    @R.function
    def main(x: R.Tensor((1, "n", 192), "bfloat16")):
        n = T.int64()
        cls = Expected
        with R.dataflow():
            rows = R.reshape(x, R.shape([n, 192]))
            gated = R.call_tir(cls.silu_mul, (rows,), out_ty=R.Tensor((n, 96), "bfloat16"))
            y = R.reshape(gated, R.shape([1, n, 96]))
            R.output(y)
        return y


@pytest.mark.parametrize("before", [SiluTimesUp, UpTimesSilu])
def test_becomes_one_kernel(before):
    expected = with_kernels(Expected, silu_mul=silu_mul(96, "bfloat16", ISA))
    tvm.ir.assert_structural_equal(FuseSwiGLU(KERNELS)(before), expected)


@I.ir_module
class SiluOfTheSecondHalf:
    @R.function
    def main(x: R.Tensor(("n", 192), "bfloat16")):
        with R.dataflow():
            halves = R.split(x, indices_or_sections=2, axis=-1)
            up = halves[0]
            gate = halves[1]
            activation = R.nn.silu(gate)
            y = R.multiply(activation, up)
            R.output(y)
        return y


@I.ir_module
class UnequalParts:
    @R.function
    def main(x: R.Tensor(("n", 97), "bfloat16")):
        with R.dataflow():
            parts = R.split(x, indices_or_sections=[96], axis=-1)
            gate = parts[0]
            up = parts[1]
            activation = R.nn.silu(gate)
            y = R.multiply(activation, up)
            R.output(y)
        return y


@I.ir_module
class SplitRows:
    @R.function
    def main(x: R.Tensor((4, 64), "float32")):
        with R.dataflow():
            halves = R.split(x, indices_or_sections=2, axis=0)
            gate = halves[0]
            up = halves[1]
            activation = R.nn.silu(gate)
            y = R.multiply(activation, up)
            R.output(y)
        return y


@pytest.mark.parametrize("mod", [SiluOfTheSecondHalf, UnequalParts, SplitRows])
def test_anything_else_stays(mod):
    tvm.ir.assert_structural_equal(FuseSwiGLU(KERNELS)(mod), mod)
