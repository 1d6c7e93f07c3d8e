import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T
from with_kernels import with_kernels

from passes.cpu_kernels import cpu_kernels
from passes.dispatch_norm import DispatchNorm
from tir_kernels.cpu.isa import VectorISA
from tir_kernels.cpu.qk_norm import qk_norm
from tir_kernels.cpu.rms_norm import rms_norm

ISA = VectorISA("generic", 4)
KERNELS = cpu_kernels(ISA)


def test_rms_norm_runs_on_rows():
    @I.ir_module
    class Before:
        @R.function
        def prefill(x: R.Tensor((1, "n", 64), "bfloat16"), w: R.Tensor((64,), "bfloat16")):
            with R.dataflow():
                y = R.nn.rms_norm(x, w, axes=[-1], epsilon=1e-5)
                R.output(y)
            return y

        @R.function
        def decode(x: R.Tensor(("b", 1, 64), "bfloat16"), w: R.Tensor((64,), "bfloat16")):
            with R.dataflow():
                y = R.nn.rms_norm(x, w, axes=[2], epsilon=1e-5)
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @T.prim_func(s_tir=True, private=True)
        def rms_norm(x: T.handle, w: T.handle, y: T.handle):
            T.evaluate(0)

        @R.function
        def prefill(x: R.Tensor((1, "n", 64), "bfloat16"), w: R.Tensor((64,), "bfloat16")):
            n = T.int64()
            cls = Expected
            with R.dataflow():
                rows = R.reshape(x, R.shape([n, 64]))
                normalised = R.call_tir(cls.rms_norm, (rows, w), out_ty=R.Tensor((n, 64), "bfloat16"))
                y = R.reshape(normalised, R.shape([1, n, 64]))
                R.output(y)
            return y

        @R.function
        def decode(x: R.Tensor(("b", 1, 64), "bfloat16"), w: R.Tensor((64,), "bfloat16")):
            b = T.int64()
            cls = Expected
            with R.dataflow():
                rows = R.reshape(x, R.shape([b, 64]))
                normalised = R.call_tir(cls.rms_norm, (rows, w), out_ty=R.Tensor((b, 64), "bfloat16"))
                y = R.reshape(normalised, R.shape([b, 1, 64]))
                R.output(y)
            return y

    expected = with_kernels(Expected, rms_norm=rms_norm(64, 1e-5, "bfloat16", ISA))
    tvm.ir.assert_structural_equal(DispatchNorm(KERNELS)(Before), expected)


@I.ir_module
class Heads:
    @R.function
    def main(
        qkv: R.Tensor((1, "n", 8, 16), "float32"),
        q_weight: R.Tensor((16,), "float32"),
        k_weight: R.Tensor((16,), "float32"),
    ):
        with R.dataflow():
            parts = R.split(qkv, indices_or_sections=[4, 6], axis=2)
            q = parts[0]
            k = parts[1]
            v = parts[2]
            q_norm = R.nn.rms_norm(q, q_weight, axes=[-1], epsilon=1e-6)
            k_norm = R.nn.rms_norm(k, k_weight, axes=[-1], epsilon=1e-6)
            heads = R.concat((q_norm, k_norm, v), axis=2)
            R.output(heads)
        return heads


def test_normalised_heads_are_one_call():
    @I.ir_module
    class Expected:
        @T.prim_func(s_tir=True, private=True)
        def qk_norm(qkv: T.handle, q_weight: T.handle, k_weight: T.handle, y: T.handle):
            T.evaluate(0)

        @R.function
        def main(
            qkv: R.Tensor((1, "n", 8, 16), "float32"),
            q_weight: R.Tensor((16,), "float32"),
            k_weight: R.Tensor((16,), "float32"),
        ):
            n = T.int64()
            cls = Expected
            with R.dataflow():
                rows = R.reshape(qkv, R.shape([n, 8, 16]))
                normalised = R.call_tir(cls.qk_norm, (rows, q_weight, k_weight), out_ty=R.Tensor((n, 8, 16), "float32"))
                heads = R.reshape(normalised, R.shape([1, n, 8, 16]))
                R.output(heads)
            return heads

    expected = with_kernels(Expected, qk_norm=qk_norm(4, 2, 16, 1e-6, "float32", ISA))
    tvm.ir.assert_structural_equal(DispatchNorm(KERNELS)(Heads), expected)


def test_heads_in_another_order_are_normalised_one_by_one():
    @I.ir_module
    class Swapped:
        @R.function
        def main(qkv: R.Tensor((1, "n", 8, 16), "float32"), w: R.Tensor((16,), "float32")):
            with R.dataflow():
                parts = R.split(qkv, indices_or_sections=[4, 6], axis=2)
                q = parts[0]
                k = parts[1]
                v = parts[2]
                q_norm = R.nn.rms_norm(q, w, axes=[-1], epsilon=1e-6)
                k_norm = R.nn.rms_norm(k, w, axes=[-1], epsilon=1e-6)
                heads = R.concat((k_norm, q_norm, v), axis=2)
                R.output(heads)
            return heads

    after = DispatchNorm(KERNELS)(Swapped)
    assert [var.name_hint for var in after.get_global_vars()] == ["main", "rms_norm"]
    assert after["main"].script().count("R.call_tir(rms_norm") == 2


def test_a_norm_over_two_axes_stays():
    @I.ir_module
    class TwoAxes:
        @R.function
        def main(x: R.Tensor((4, 8, 16), "float32"), w: R.Tensor((8, 16), "float32")):
            with R.dataflow():
                y = R.nn.rms_norm(x, w, axes=[-2, -1], epsilon=1e-6)
                R.output(y)
            return y

    tvm.ir.assert_structural_equal(DispatchNorm(KERNELS)(TwoAxes), TwoAxes)
