import numpy as np
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from passes.select_rows_early import SelectRowsEarly


@I.ir_module
class WholeLayer:
    """What follows the last attention ``a``: its output projection, the residual ``x``, an MLP; then rows are taken."""

    @R.function
    def main(
        a: R.Tensor((1, "n", 6), "float32"),
        x: R.Tensor((1, "n", 4), "float32"),
        rows: R.Tensor(("b",), "int32"),
        out: R.Tensor((4, 6), "float32"),
        norm: R.Tensor((4,), "float32"),
        gate_up: R.Tensor((16, 4), "float32"),
        down: R.Tensor((4, 8), "float32"),
    ):
        with R.dataflow():
            out_t = R.permute_dims(out)
            projected = R.matmul(a, out_t)
            residual = R.add(projected, x)
            normed = R.nn.rms_norm(residual, norm, axes=[-1], epsilon=1e-6)
            gate_up_t = R.permute_dims(gate_up)
            halves = R.matmul(normed, gate_up_t)
            parts = R.split(halves, indices_or_sections=2, axis=-1)
            gate = parts[0]
            up = parts[1]
            activation = R.nn.silu(gate)
            product = R.multiply(activation, up)
            down_t = R.permute_dims(down)
            mlp = R.matmul(product, down_t)
            hidden = R.add(mlp, residual)
            taken = R.take(hidden, rows, axis=1, mode="clip")
            doubled = R.add(taken, taken)
            R.output(doubled)
        return doubled


@I.ir_module
class ExpectedWholeLayer:
    @R.function
    def main(
        a: R.Tensor((1, "n", 6), "float32"),
        x: R.Tensor((1, "n", 4), "float32"),
        rows: R.Tensor(("b",), "int32"),
        out: R.Tensor((4, 6), "float32"),
        norm: R.Tensor((4,), "float32"),
        gate_up: R.Tensor((16, 4), "float32"),
        down: R.Tensor((4, 8), "float32"),
    ):
        with R.dataflow():
            out_t = R.permute_dims(out)
            gate_up_t = R.permute_dims(gate_up)
            down_t = R.permute_dims(down)
            a_rows = R.take(a, rows, axis=1, mode="clip")
            projected = R.matmul(a_rows, out_t)
            x_rows = R.take(x, rows, axis=1, mode="clip")
            residual = R.add(projected, x_rows)
            normed = R.nn.rms_norm(residual, norm, axes=[-1], epsilon=1e-6)
            halves = R.matmul(normed, gate_up_t)
            parts = R.split(halves, indices_or_sections=2, axis=-1)
            gate = parts[0]
            up = parts[1]
            activation = R.nn.silu(gate)
            product = R.multiply(activation, up)
            mlp = R.matmul(product, down_t)
            hidden = R.add(mlp, residual)
            doubled = R.add(hidden, hidden)
            R.output(doubled)
        return doubled


@I.ir_module
class LastToken:
    """``mixed`` is read by something else as well, and ``summed`` mixes rows: the choice goes no further up."""

    @T.prim_func(private=True, s_tir=True)
    def last_token(x: T.handle, y: T.Buffer((T.int64(1), T.int64(1), T.int64(4)), "float32")):
        n = T.int64()
        X = T.match_buffer(x, (T.int64(1), n, T.int64(4)))
        for k in range(T.int64(4)):
            with T.sblock("last_token"):
                i = T.axis.spatial(T.int64(4), k)
                y[T.int64(0), T.int64(0), i] = X[T.int64(0), n - T.int64(1), i]

    @R.function
    def main(x: R.Tensor((1, "n", 4), "float32"), bias: R.Tensor((4,), "float32")):
        cls = LastToken
        with R.dataflow():
            summed = R.cumsum(x, axis=1)
            mixed = R.add(summed, bias)
            wide = R.multiply(mixed, summed)
            last = R.call_tir(cls.last_token, (wide,), out_ty=R.Tensor((1, 1, 4), "float32"))
            both = (last, mixed)
            R.output(both)
        return both


def run(mod: tvm.IRModule, *arrays: np.ndarray):
    target = tvm.target.Target("llvm")
    compiled = tvm.compile(relax.transform.LegalizeOps()(mod), target=target)
    return relax.VirtualMachine(compiled, tvm.cpu())["main"](*map(tvm.runtime.tensor, arrays))


def test_a_layer_runs_on_the_taken_rows():
    tvm.ir.assert_structural_equal(SelectRowsEarly()(WholeLayer), ExpectedWholeLayer)


def test_last_row_kernel_goes_up_to_what_is_read_elsewhere():
    after = SelectRowsEarly()(LastToken)
    ops = [binding.value for block in after["main"].body.blocks for binding in block.bindings]
    names = [
        call.args[0].name_hint for call in ops if isinstance(call, relax.Call) and call.op.name == "relax.call_tir"
    ]
    assert [name.rstrip("_0123456789") for name in names] == ["last_token", "last_token"]
    product = next(call for call in ops if isinstance(call, relax.Call) and call.op.name == "relax.multiply")
    assert [int(extent) for extent in product.ty.shape] == [1, 1, 4]
    rng = np.random.default_rng(0)
    x, bias = rng.standard_normal((1, 5, 4)).astype("float32"), rng.standard_normal(4).astype("float32")
    last, mixed = run(after, x, bias)
    summed = x.cumsum(1)
    np.testing.assert_allclose(mixed.numpy(), summed + bias, rtol=1e-6)
    np.testing.assert_allclose(last.numpy(), ((summed + bias) * summed)[:, -1:], rtol=1e-5)


def test_functions_that_want_every_row_stay():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((1, "n", 4), "float32"), ids: R.Tensor(("b",), "int32")):
            with R.dataflow():
                y = R.add(x, x)
                rows = R.take(x, ids, axis=1, mode="clip")
                both = (y, rows)
                R.output(both)
            return both

    tvm.ir.assert_structural_equal(SelectRowsEarly()(Module), Module)
