import numpy as np
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T
from tvm.target import Target
from with_kernels import with_kernels

from passes.attach_softmax import AttachSoftmaxWithTemperature
from passes.cpu_kernels import cpu_kernels
from tir_kernels.cpu.isa import vector_isa
from tir_kernels.cpu.softmax import softmax_with_temperature as kernel

TARGET = Target({"kind": "llvm", "mcpu": "x86-64"})
ISA = vector_isa(TARGET)
KERNELS = cpu_kernels(ISA)


@I.ir_module
class Expected:
    @T.prim_func(s_tir=True, private=True)
    def softmax(logits: T.handle, temperature: T.handle, probabilities: T.handle):
        T.evaluate(0)

    @R.function
    def softmax_with_temperature(
        logits: R.Tensor(("batch_size", 1, "vocab_size"), "float32"), temperature: R.Tensor(("batch_size",), "float32")
    ) -> R.Tensor(("batch_size", 1, "vocab_size"), "float32"):
        batch_size = T.int64()
        vocab_size = T.int64()
        cls = Expected
        with R.dataflow():
            result = R.call_tir(
                cls.softmax, (logits, temperature), out_ty=R.Tensor((batch_size, 1, vocab_size), "float32")
            )
            R.output(result)
        return result


def test_adds_a_relax_function_that_calls_the_kernel():
    expected = with_kernels(Expected, softmax=kernel(None, ISA))
    tvm.ir.assert_structural_equal(AttachSoftmaxWithTemperature(KERNELS)(tvm.IRModule()), expected)


def test_compiled_function_hides_the_padded_vocabulary():
    mod = AttachSoftmaxWithTemperature(KERNELS, active_vocab_size=40)(tvm.IRModule())
    vm = relax.VirtualMachine(tvm.compile(mod, target=TARGET), tvm.cpu())
    logits = np.random.default_rng(0).normal(size=(3, 1, 64)).astype(np.float32)
    actual = vm["softmax_with_temperature"](
        tvm.runtime.tensor(logits), tvm.runtime.tensor(np.full(3, 0.5, np.float32))
    ).numpy()
    power = np.exp(2 * logits[..., :40].astype(np.float64))
    np.testing.assert_allclose(actual[..., :40], power / power.sum(-1, keepdims=True), rtol=1e-5)
    assert np.all(actual[..., 40:] == 0)
