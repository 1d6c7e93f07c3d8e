import tvm
from relax_only import assert_relax_equal
from test_dispatch_kv_cache_creation import creation_module
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from passes.explicit_attention import ExplicitAttention
from tir_kernels.cpu.isa import VectorISA
from tir_kernels.rope_scaling import inv_freq

ISA = VectorISA("avx512_bf16", 16)


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


def table(ndim: int):
    return relax.TensorType(dtype="int32", ndim=ndim)


def expected_main(after: tvm.IRModule, batch_shape, layers: int, kernel: str) -> relax.Function:
    """The rewritten function, built by hand with the block builder; it calls the kernels of ``after``."""
    builder = relax.BlockBuilder()
    n = tvm.tirx.Var("n", "int64")
    pages = tvm.tirx.Var("num_head_pages", "int64")
    x = relax.Var("x", relax.TensorType(batch_shape(n), "bfloat16"))
    kv = relax.Var("kv", relax.AnyType())
    k_pages = relax.TensorType((pages, 16, 64, 2), "bfloat16")
    v_pages = relax.TensorType((pages, 32, 32, 2), "bfloat16")
    q_type = relax.TensorType((n, 8, 32), "bfloat16")
    unknown = relax.TensorType(dtype="bfloat16", ndim=4)
    names = ("rope_table", "rope_append", kernel)
    rope_table, rope_append, attend = (after.get_global_var(name) for name in names)
    frequencies, _ = inv_freq(10000.0, 32, {"rope_type": "linear", "factor": 2.0})
    with builder.function("main", [x, kv]):
        with builder.dataflow():
            qkv = builder.emit(relax.op.reshape(x, (n, 12, 32)))
            step = builder.emit(
                relax.call_pure_packed("kv_cache_step", kv, ty_args=relax.TupleType([table(1), table(1), table(2)]))
            )
            positions, query_indptr, tiles = (builder.emit(step[i]) for i in range(3))
            cos_sin = builder.emit(
                relax.call_tir(
                    rope_table,
                    [positions, relax.const(frequencies, "float32")],
                    relax.TensorType((n, 32), "float32"),
                )
            )
            outputs = []
            for layer in range(layers):
                first = layer == 0
                types = [unknown, unknown] if first else [k_pages, v_pages]
                types += [table(2), table(2), table(1), table(2)]
                tables = builder.emit(
                    relax.call_pure_packed(
                        "kv_cache_layer", kv, relax.prim_value(layer), ty_args=relax.TupleType(types)
                    )
                )
                k, v, slots, indptr, indices, lengths = [builder.emit(tables[i]) for i in range(6)]
                if first:
                    k, v = builder.match_cast(k, k_pages), builder.match_cast(v, v_pages)
                appended = builder.emit(
                    relax.op.call_tir_inplace(
                        rope_append, [qkv, cos_sin, slots, k, v], [-1, 3, 4], [q_type, k_pages, v_pages]
                    )
                )
                q, k, v = [builder.emit(appended[i]) for i in range(3)]
                call = relax.call_tir(attend, [q, k, v, query_indptr, tiles, indptr, indices, lengths], q_type)
                outputs.append(call if layers == 1 else builder.emit(call))
            result = builder.emit_output(outputs[0] if layers == 1 else relax.op.add(*outputs))
        builder.emit_func_output(result)
    return builder.finalize()["main"]


def assert_main_equals(actual: tvm.IRModule, expected: relax.Function):
    tvm.ir.assert_structural_equal(tvm.IRModule({"main": actual["main"]}), tvm.IRModule({"main": expected}))


def test_prefill_shares_the_step_and_visits_the_layers():
    after = ExplicitAttention(ISA)(before(None))
    assert_main_equals(after, expected_main(after, lambda n: (1, n, 384), 2, "attention_prefill"))
    kernels = {var.name_hint for var, func in after.functions_items() if isinstance(func, tvm.tirx.PrimFunc)}
    assert kernels == {"rope_table", "rope_append", "attention_prefill"}


def test_one_token_a_sequence_takes_the_decode_kernel():
    after = ExplicitAttention(ISA)(before(1))
    assert_main_equals(after, expected_main(after, lambda n: (n, 1, 384), 1, "attention_decode"))


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
    assert_relax_equal(ExplicitAttention(ISA)(mod), mod)
