import numpy as np
import pytest
import tvm
from expected_attention import ExpectedFunction
from relax_only import assert_relax_equal
from test_dispatch_kv_cache_creation import creation_module
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from passes.cpu_kernels import cpu_kernels
from passes.explicit_attention import ExplicitAttention
from passes.weight_plan import is_call
from runtime.policy import make_policy
from tir_kernels.cpu.isa import VectorISA
from tir_kernels.rope_scaling import mean_cos_sin

KERNELS = cpu_kernels(VectorISA("avx512_bf16", 16))


def before(rows: int | None):
    """Two attention layers; rows None is a prefill of n tokens ([1, n, hidden]), 1 a decode step of n sequences."""

    @I.ir_module
    class Prefill:
        @R.function
        def main(x: R.Tensor((1, "n", 384), "bfloat16"), kv: R.Any) -> R.Tensor(("n", 8, 32), "bfloat16"):
            n = T.int64()
            with R.dataflow():
                qkv = R.reshape(x, (n, 12, 32))
                a = R.call_dps_packed(
                    "vm.builtin.attention_kv_cache_attention_with_fused_qkv",
                    (kv, R.prim_value(0), R.prim_value(T.float64(0.25)), qkv),
                    out_ty=R.Tensor((n, 8, 32), "bfloat16"),
                )
                b = R.call_dps_packed(
                    "vm.builtin.attention_kv_cache_attention_with_fused_qkv",
                    (kv, R.prim_value(1), R.prim_value(T.float64(0.25)), qkv),
                    out_ty=R.Tensor((n, 8, 32), "bfloat16"),
                )
                o = R.add(a, b)
                R.output(o)
            return o

    @I.ir_module
    class Decode:
        @R.function
        def main(x: R.Tensor(("n", 1, 384), "bfloat16"), kv: R.Any) -> R.Tensor(("n", 8, 32), "bfloat16"):
            n = T.int64()
            with R.dataflow():
                qkv = R.reshape(x, (n, 12, 32))
                a = R.call_dps_packed(
                    "vm.builtin.attention_kv_cache_attention_with_fused_qkv",
                    (kv, R.prim_value(0), R.prim_value(T.float64(0.25)), qkv),
                    out_ty=R.Tensor((n, 8, 32), "bfloat16"),
                )
                R.output(a)
            return a

    module = Prefill if rows is None else Decode
    return merged(module, creation_module())


def merged(*modules):
    functions = {}
    for module in modules:
        functions.update({var.name_hint: func for var, func in module.functions_items()})
    return tvm.IRModule(functions)


def assert_main_equals(actual: tvm.IRModule, expected: tvm.relax.Function):
    tvm.ir.assert_structural_equal(tvm.IRModule({"main": actual["main"]}), tvm.IRModule({"main": expected}))


def rewrite(rows: int | None, policy):
    """(module after the pass, what builds its expected ``main``)."""
    after = ExplicitAttention(KERNELS, policy)(before(rows))
    shape = (lambda n: (1, n, 384)) if rows is None else (lambda n: (n, 1, 384))
    return after, ExpectedFunction(after, policy.decode != "full", shape, policy.kv_dtype == "int8")


def kernel_names(mod: tvm.IRModule) -> set[str]:
    return {var.name_hint for var, func in mod.functions_items() if isinstance(func, tvm.tirx.PrimFunc)}


@pytest.mark.parametrize("decode", ["full", "latent"])
def test_dense_prefill_shares_the_step_and_visits_the_layers(decode):
    after, expected = rewrite(None, make_policy("dense", decode))
    main = expected.build(
        lambda qkv: expected.dense("attention_prefill", 0, qkv), lambda qkv: expected.dense("attention_prefill", 1, qkv)
    )
    assert_main_equals(after, main)
    assert kernel_names(after) == {"rope_table", "rope_append", "attention_prefill"}


@pytest.mark.parametrize("prefill, decode", [("dense", "full"), ("entropy", "full"), ("entropy", "latent")])
def test_one_token_a_sequence_takes_the_decode_kernel(prefill, decode):
    after, expected = rewrite(1, make_policy(prefill, decode))
    assert_main_equals(after, expected.build(lambda qkv: expected.dense("attention_decode", 0, qkv)))
    assert kernel_names(after) == {"rope_table", "rope_append", "attention_decode"}


@pytest.mark.parametrize("decode, settings", [("full", ""), ("latent", ""), ("latent", ";kv_dtype=int8")])
def test_gated_prefill_keeps_the_skipped_layer_dense(decode, settings):
    after, expected = rewrite(None, make_policy("entropy", decode, f"layer_skip=1{settings}"))
    main = expected.build(
        lambda qkv: expected.dense("attention_prefill", 0, qkv), lambda qkv: expected.gated(1, qkv, "observe")
    )
    assert_main_equals(after, main)


def test_gated_layers_share_the_work_space():
    """The scores of a layer are an input of the next layer's observation: CritiPrefill mixes them."""
    after, expected = rewrite(None, make_policy("critiprefill", "full", "layer_skip=0;block_size=8"))
    main = expected.build(lambda qkv: expected.gated(0, qkv, "observe"), lambda qkv: expected.gated(1, qkv, "observe1"))
    assert_main_equals(after, main)


@pytest.mark.parametrize(
    "prefill, attend, columns", [("dense", "attention_prefill", 2), ("entropy", "attention_gated", 4)]
)
def test_a_layer_of_which_rows_are_taken_attends_for_these(prefill, attend, columns):
    """The second layer's attention is read through a choice of rows only, the first one's as a whole."""

    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((1, "n", 384), "bfloat16"), ids: R.Tensor(("b",), "int32"), kv: R.Any):
            n = T.int64()
            with R.dataflow():
                qkv = R.reshape(x, (n, 12, 32))
                a = R.call_dps_packed(
                    "vm.builtin.attention_kv_cache_attention_with_fused_qkv",
                    (kv, R.prim_value(0), R.prim_value(T.float64(0.25)), qkv),
                    out_ty=R.Tensor((n, 8, 32), "bfloat16"),
                )
                b = R.call_dps_packed(
                    "vm.builtin.attention_kv_cache_attention_with_fused_qkv",
                    (kv, R.prim_value(1), R.prim_value(T.float64(0.25)), qkv),
                    out_ty=R.Tensor((n, 8, 32), "bfloat16"),
                )
                heads = R.reshape(b, (1, n, 256))
                rows = R.take(heads, ids, axis=1, mode="clip")
                both = (a, rows)
                R.output(both)
            return both

    after = ExplicitAttention(KERNELS, make_policy(prefill, "full"))(merged(Module, creation_module()))
    values = {binding.var: binding.value for binding in after["main"].body.blocks[0].bindings}
    calls = {}
    for value in values.values():
        if isinstance(value, tvm.relax.Call) and value.op.name == "relax.call_tir":
            name = value.args[0].name_hint
            calls.setdefault(name, []).append(value)
    tiles = [
        call.args[1].fields[4] for name in ("attention_prefill", "attention_gated") for call in calls.get(name, [])
    ]
    (row_tiles,) = calls["row_tiles"]
    assert attend in calls and len(tiles) == 2
    assert isinstance(values[tiles[0]], tvm.relax.TupleGetItem)  # the step's
    assert values[tiles[1]].same_as(row_tiles)
    assert row_tiles.args[1].fields[0].same_as(after["main"].params[1])
    assert row_tiles.args[1].fields[1].same_as(calls[attend][-1].args[1].fields[3])
    assert int(row_tiles.ty.shape[1]) == columns


def test_functions_without_attention_stay():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((4,), "float32")):
            with R.dataflow():
                y = R.add(x, x)
                R.output(y)
            return y

    mod = merged(Module, creation_module())
    assert_relax_equal(ExplicitAttention(KERNELS, make_policy("entropy", "latent"))(mod), mod)


@pytest.mark.parametrize("kv_dtype, centred", [("int8", True), ("model", False)])
def test_rope_append_gets_the_bias_of_keys_that_become_8_bit(kv_dtype, centred):
    @I.ir_module
    class Biased:
        @R.function
        def main(x: R.Tensor((1, "n", 384), "bfloat16"), bias: R.Tensor((384,), "bfloat16"), kv: R.Any) -> R.Tensor(
            ("n", 8, 32), "bfloat16"
        ):
            n = T.int64()
            with R.dataflow():
                biased = R.add(x, bias)
                qkv = R.reshape(biased, (n, 12, 32))
                a = R.call_dps_packed(
                    "vm.builtin.attention_kv_cache_attention_with_fused_qkv",
                    (kv, R.prim_value(0), R.prim_value(T.float64(0.25)), qkv),
                    out_ty=R.Tensor((n, 8, 32), "bfloat16"),
                )
                R.output(a)
            return a

    policy = make_policy("dense", "full", f"kv_dtype={kv_dtype}")
    after = ExplicitAttention(KERNELS, policy)(merged(Biased, creation_module()))
    main, rope_append = after["main"], after["rope_append"]
    values = {binding.var: binding.value for block in main.body.blocks for binding in block.bindings}
    inplace = [v for v in values.values() if is_call(v, "relax.call_tir_inplace")]
    (append,) = [v for v in inplace if v.args[0].name_hint == "rope_append"]
    arguments = dict(zip([param.name for param in rope_append.params], append.args[1].fields))
    assert ("qkv_bias" in arguments) == ("mean_cos_sin" in arguments) == centred
    if centred:
        reshaped = values[arguments["qkv_bias"]]
        assert is_call(reshaped, "relax.reshape") and reshaped.args[0].same_as(main.params[1])
        mean = mean_cos_sin(10000.0, 32, {"rope_type": "linear", "factor": 2.0})
        np.testing.assert_array_equal(arguments["mean_cos_sin"].value.numpy(), mean)
