"""DispatchLinear on small functions. Kernels are compared by name and by the factory call that makes them."""

import pytest
import tvm
from relax_only import assert_relax_equal
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from passes.cpu_kernels import cpu_kernels
from passes.dispatch_linear import DispatchLinear
from passes.weight_plan import StoredParam, weight_plan
from tir_kernels.cpu.embedding import embedding
from tir_kernels.cpu.isa import VectorISA
from tir_kernels.cpu.linear import linear, swiglu
from tir_kernels.stored_weight import StoredTensor
from tir_kernels.weight_format import weight_format

ISA = VectorISA("avx512_bf16", 16)
KERNELS = cpu_kernels(ISA)
BF16 = weight_format("q0bf16")


@I.ir_module
class Before:
    @R.function
    def embed(
        ids: R.Tensor(("n",), "int32"),
        packed_params: R.Tuple(
            R.Tensor((96, 64), "bfloat16"), R.Tensor((128, 64), "bfloat16"), R.Tensor((128,), "bfloat16")
        ),
    ):
        n = T.int64()
        R.func_attr({"num_input": 1})
        with R.dataflow():
            table = packed_params[0]
            rows = R.take(table, ids, axis=0)
            R.output(rows)
        return rows

    @R.function
    def main(
        x: R.Tensor((1, "n", 64), "bfloat16"),
        packed_params: R.Tuple(
            R.Tensor((96, 64), "bfloat16"), R.Tensor((128, 64), "bfloat16"), R.Tensor((128,), "bfloat16")
        ),
    ):
        n = T.int64()
        R.func_attr({"num_input": 1})
        with R.dataflow():
            table = packed_params[0]
            gate_up = packed_params[1]
            bias = packed_params[2]
            gate_up_t = R.permute_dims(gate_up)
            biased = R.add(R.matmul(x, gate_up_t), bias)
            both = R.matmul(x, R.permute_dims(gate_up))
            halves = R.split(both, 2, axis=-1)
            gated = R.multiply(R.nn.silu(halves[0]), halves[1])
            logits = R.astype(R.matmul(R.add(x, gated), R.permute_dims(table)), "float32")
            out = (biased, logits)
            R.output(out)
        return out


@I.ir_module
class Expected:
    @T.prim_func(private=True, s_tir=True)
    def embedding(w: T.handle, ids: T.handle, out: T.handle):
        T.evaluate(0)

    @T.prim_func(private=True, s_tir=True)
    def linear_bias(x: T.handle, w: T.handle, bias: T.handle, out: T.handle):
        T.evaluate(0)

    @T.prim_func(private=True, s_tir=True)
    def swiglu(x: T.handle, w: T.handle, out: T.handle):
        T.evaluate(0)

    @T.prim_func(private=True, s_tir=True)
    def linear(x: T.handle, w: T.handle, out: T.handle):
        T.evaluate(0)

    @R.function
    def embed(
        ids: R.Tensor(("n",), "int32"),
        packed_params: R.Tuple(
            R.Tensor((3, 32, 32, 2), "bfloat16"), R.Tensor((4, 32, 32, 2), "bfloat16"), R.Tensor((128,), "bfloat16")
        ),
    ):
        n = T.int64()
        R.func_attr({"num_input": 1})
        cls = Expected
        with R.dataflow():
            table = packed_params[0]
            flat = R.reshape(ids, (n,))
            gathered = R.call_tir(cls.embedding, (table, flat), out_ty=R.Tensor((n, 64), "bfloat16"))
            rows = R.reshape(gathered, (n, 64))
            R.output(rows)
        return rows

    @R.function
    def main(
        x: R.Tensor((1, "n", 64), "bfloat16"),
        packed_params: R.Tuple(
            R.Tensor((3, 32, 32, 2), "bfloat16"), R.Tensor((4, 32, 32, 2), "bfloat16"), R.Tensor((128,), "bfloat16")
        ),
    ):
        n = T.int64()
        R.func_attr({"num_input": 1})
        cls = Expected
        with R.dataflow():
            table = packed_params[0]
            gate_up = packed_params[1]
            bias = packed_params[2]
            x1 = R.reshape(x, (n, 64))
            y1 = R.call_tir(cls.linear_bias, (x1, gate_up, bias), out_ty=R.Tensor((n, 128), "bfloat16"))
            biased = R.reshape(y1, (1, n, 128))
            x2 = R.reshape(x, (n, 64))
            y2 = R.call_tir(cls.swiglu, (x2, gate_up), out_ty=R.Tensor((n, 64), "bfloat16"))
            gated = R.reshape(y2, (1, n, 64))
            lv = R.add(x, gated)
            x3 = R.reshape(lv, (n, 64))
            y3 = R.call_tir(cls.linear, (x3, table), out_ty=R.Tensor((n, 96), "float32"))
            logits = R.reshape(y3, (1, n, 96))
            out = (biased, logits)
            R.output(out)
        return out


def test_matmuls_take_and_what_follows_them_become_kernels():
    after = DispatchLinear(BF16, KERNELS)(Before)
    assert_relax_equal(after, Expected)
    kernels = {
        "embedding": embedding(96, 64, "bf16_n32k2", "bfloat16", ISA),
        "linear_bias": linear(128, 64, "bf16_n32k2", "bfloat16", ISA, bias=True),
        "swiglu": swiglu(64, 64, "bf16_n32k2", "bfloat16", ISA),
        "linear": linear(96, 64, "bf16_n32k2", "bfloat16", ISA, out_dtype="float32"),
    }
    for name, kernel in kernels.items():
        tvm.ir.assert_structural_equal(after[name].without_attr("global_symbol"), kernel.without_attr("global_symbol"))


def function(
    body: str, x: str = '(2, 64), "bfloat16"', weights: str = 'R.Tensor((192, 64), "bfloat16")'
) -> tvm.IRModule:
    """A module with the function ``main(x, y, packed_params)`` whose dataflow block is ``body`` and returns ``out``."""
    lines = "\n            ".join(body.strip().splitlines())
    return tvm.script.from_source(
        f"""
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor({x}), y: R.Tensor((2, 192), "bfloat16"), packed_params: R.Tuple({weights})):
        R.func_attr({{"num_input": 2}})
        with R.dataflow():
            w = packed_params[0]
            {lines}
            R.output(out)
        return out
"""
    )


def kernels_of(mod: tvm.IRModule) -> list[str]:
    return sorted(var.name_hint for var, func in mod.functions_items() if isinstance(func, tvm.tirx.PrimFunc))


@pytest.mark.parametrize(
    "body, kernels",
    [
        ("out = R.add(R.matmul(x, R.permute_dims(w)), y)", ["linear_residual"]),
        ("out = R.add(y, R.matmul(x, R.permute_dims(w)))", ["linear_residual"]),
        # The product is read twice: it has to exist by itself.
        ("p = R.matmul(x, R.permute_dims(w))\nout = R.add(p, p)", ["linear"]),
        ("p = R.matmul(x, R.permute_dims(w))\nq = R.add(p, y)\nout = R.multiply(p, q)", ["linear"]),
        # A second residual is an add of its own.
        ("p = R.add(R.matmul(x, R.permute_dims(w)), y)\nout = R.add(p, y)", ["linear_residual"]),
        (
            "h = R.split(R.matmul(x, R.permute_dims(w)), 2, axis=-1)\nout = R.multiply(R.nn.silu(h[0]), h[1])",
            ["swiglu"],
        ),
        # Halves of 40 rows share a panel of 32: SwiGLU as an op of its own.
        (
            "h = R.split(R.matmul(x, R.permute_dims(w)), [40, 80], axis=-1)\nout = R.multiply(R.nn.silu(h[0]), h[1])",
            ["linear"],
        ),
        # silu on the second half, and a split in three: no SwiGLU.
        (
            "h = R.split(R.matmul(x, R.permute_dims(w)), 2, axis=-1)\nout = R.multiply(R.nn.silu(h[1]), h[0])",
            ["linear"],
        ),
        (
            "h = R.split(R.matmul(x, R.permute_dims(w)), 3, axis=-1)\nout = R.multiply(R.nn.silu(h[0]), h[1])",
            ["linear"],
        ),
    ],
)
def test_what_is_fused_behind_a_matmul(body, kernels):
    assert kernels_of(DispatchLinear(BF16, KERNELS)(function(body))) == kernels


def plain(shape: tuple[int, ...]) -> StoredParam:
    return StoredParam(shape, (StoredTensor("", shape, "bfloat16", "plain"),), is_matrix=False)


def test_a_matrix_with_another_use_stays_plain():
    mod = function("p = R.matmul(x, R.permute_dims(w))\nq = R.sum(w, axis=1)\nout = R.add(p, q)")
    assert weight_plan(mod, BF16) == [plain((192, 64))]
    assert_relax_equal(DispatchLinear(BF16, KERNELS)(mod), mod)


def test_the_plan_gives_packed_shapes():
    assert weight_plan(Before, weight_format("q4bf16_1")) == [
        StoredParam((96, 64), (StoredTensor("weight", (3, 2, 160), "int32", "q4_n32g32"),), True),
        StoredParam((128, 64), (StoredTensor("weight", (4, 2, 160), "int32", "q4_n32g32"),), True),
        plain((128,)),
    ]
