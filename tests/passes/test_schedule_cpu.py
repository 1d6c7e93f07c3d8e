import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tvm
from libm_calls import libm_calls
from tvm import relax
from tvm.relax import op
from tvm.script import ir as I
from tvm.script import tirx as T
from tvm.target import Target

from passes.schedule_cpu import ScheduleCPU
from tir_kernels.cpu.isa import vector_isa

TARGETS = {"avx2": Target({"kind": "llvm", "mcpu": "haswell"}), "generic": Target({"kind": "llvm", "mcpu": "x86-64"})}
WIDTH = 96


def legalized(build, *types: relax.TensorType) -> tvm.IRModule:
    """A module whose function ``main`` is ``build`` of inputs of these types, its ops fused into PrimFuncs."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", ty) for i, ty in enumerate(types)]
    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit_output(build(*params))
        builder.emit_func_output(result)
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ]
    return tvm.transform.Sequential(passes)(builder.finalize())


def scheduled(mod: tvm.IRModule, target: Target = TARGETS["avx2"]) -> tvm.IRModule:
    return ScheduleCPU(vector_isa(target))(mod)


def kernel(mod: tvm.IRModule) -> tvm.tirx.PrimFunc:
    return next(func for _, func in mod.functions_items() if isinstance(func, tvm.tirx.PrimFunc))


def matrix(dtype: str, rows="n") -> relax.TensorType:
    return relax.TensorType([tvm.tirx.Var(rows, "int64") if isinstance(rows, str) else rows, WIDTH], dtype)


def softmax(x: np.ndarray) -> np.ndarray:
    power = np.exp(x - x.max(-1, keepdims=True))
    return power / power.sum(-1, keepdims=True)


UNARY = {
    "exp": (op.exp, np.exp),
    "sigmoid": (op.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "silu": (op.nn.silu, lambda x: x / (1 + np.exp(-x))),
    "tanh": (op.tanh, np.tanh),
    "gelu": (op.nn.gelu, lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))),
    "log": (lambda x: op.log(op.abs(x)), lambda x: np.log(np.abs(x))),
    "square": (op.square, np.square),
    "relu": (op.nn.relu, lambda x: np.maximum(x, 0)),
    "split": (lambda x: op.split(x, 3, axis=1)[1], lambda x: np.split(x, 3, axis=1)[1]),
    "transpose": (op.permute_dims, np.transpose),
    "softmax": (op.nn.softmax, softmax),
    "sum_rows": (lambda x: op.sum(x, axis=1), lambda x: x.sum(1)),
    "max_columns": (lambda x: op.max(x, axis=0), lambda x: x.max(0)),
    "mean_of_all": (op.mean, np.mean),
    "argmax": (lambda x: op.argmax(x, axis=1), lambda x: x.argmax(1)),
}


def run(mod: tvm.IRModule, target: Target, *inputs: np.ndarray) -> np.ndarray:
    vm = relax.VirtualMachine(tvm.compile(mod, target=target), tvm.cpu())
    return vm["main"](*(tvm.runtime.tensor(value) for value in inputs)).numpy()


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("name", UNARY)
def test_float32(name, target):
    build, reference = UNARY[name]
    mod = scheduled(legalized(build, matrix("float32")), target)
    vm = relax.VirtualMachine(tvm.compile(mod, target=target), tvm.cpu())
    for n in (1, 37, 400):  # 400 rows of 96 are worth a parallel region
        x = np.random.default_rng(n).normal(0, 3, (n, WIDTH)).astype(np.float32)
        expected = reference(x.astype(np.float64))
        # A polynomial is good to 1e-6 relative, a sum of up to 38400 normal numbers with scale 3 to 1e-3 absolute.
        atol = 1e-3 if name == "sum_rows" else 1e-6
        np.testing.assert_allclose(vm["main"](tvm.runtime.tensor(x)).numpy(), expected, rtol=2e-6, atol=atol)


@pytest.mark.parametrize("name", ["silu", "tanh", "relu", "split", "softmax"])
def test_bfloat16(name):
    build, reference = UNARY[name]
    mod = scheduled(legalized(build, matrix("bfloat16")))
    x = np.random.default_rng(0).normal(0, 3, (300, WIDTH)).astype(ml_dtypes.bfloat16)
    actual = run(mod, TARGETS["avx2"], x).astype(np.float64)
    # One rounding at the end; softmax rounds each step, its sum of 96 terms too.
    rtol = 96 * 2.0**-8 if name == "softmax" else 1.01 * 2.0**-8
    np.testing.assert_allclose(actual, reference(x.astype(np.float64)), rtol=rtol, atol=1e-6)


def test_broadcast_gather_and_concat():
    def build(x, bias, table, ids):
        rows = op.take(table, ids, axis=0)
        return op.concat([op.add(x, bias), op.multiply(rows, x)], axis=1)

    n = tvm.tirx.Var("n", "int64")
    mod = scheduled(
        legalized(
            build,
            relax.TensorType([n, WIDTH], "float32"),
            relax.TensorType([WIDTH], "float32"),
            relax.TensorType([50, WIDTH], "float32"),
            relax.TensorType([n], "int32"),
        )
    )
    rng = np.random.default_rng(0)
    x, bias, table = (rng.normal(size=shape).astype(np.float32) for shape in ((300, WIDTH), (WIDTH,), (50, WIDTH)))
    ids = rng.integers(0, 50, 300).astype(np.int32)
    expected = np.concatenate([x + bias, table[ids] * x], axis=1)
    np.testing.assert_allclose(run(mod, TARGETS["avx2"], x, bias, table, ids), expected, rtol=1e-6)


@pytest.fixture(scope="module")
def transcendental() -> tvm.IRModule:
    def build(x):
        for function in (op.exp, op.sigmoid, op.tanh, op.nn.gelu, op.nn.silu, op.abs, op.log, op.nn.softmax):
            x = function(x)
        return x

    return legalized(build, matrix("float32"))


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_no_libm_call_is_left(transcendental, target, tmp_path: Path):
    before, after = tmp_path / "before.so", tmp_path / "after.so"
    tvm.compile(transcendental, target=target).export_library(str(before))
    assert {"expf", "erff"} <= libm_calls(before)
    tvm.compile(scheduled(transcendental, target), target=target).export_library(str(after))
    assert libm_calls(after) == set()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loops_are_vectorised(dtype):
    mod = scheduled(legalized(lambda x, b: op.nn.silu(op.add(x, b)), matrix(dtype), relax.TensorType([WIDTH], dtype)))
    func = kernel(mod).with_attr("global_symbol", "main")
    assembly = tvm.compile(tvm.IRModule({"main": func}), target=TARGETS["avx2"]).mod.inspect_source("asm")
    packed, scalar = assembly.count("vdivps"), assembly.count("vdivss")
    assert packed >= 2  # the serial and the parallel form
    assert scalar <= packed


def test_the_size_decides_between_serial_and_parallel():
    @I.ir_module
    class Expected:
        @T.prim_func(s_tir=True, private=True)
        def add(var_x: T.handle, var_y: T.handle):
            T.func_attr({"op_pattern": 0, "tirx.is_scheduled": True, "tirx.noalias": True})
            n = T.int64()
            x = T.match_buffer(var_x, (n, T.int64(96)))
            y = T.match_buffer(var_y, (n, T.int64(96)))
            if n * T.int64(96) < T.int64(16384):
                for i in range(n * T.int64(96)):
                    with T.sblock("y"):
                        v0 = T.axis.spatial(n, i // T.int64(96))
                        v1 = T.axis.spatial(T.int64(96), i % T.int64(96))
                        y[v0, v1] = x[v0, v1] + T.float32(1)
            else:
                for i in T.parallel(n * T.int64(96)):
                    with T.sblock("y"):
                        v0 = T.axis.spatial(n, i // T.int64(96))
                        v1 = T.axis.spatial(T.int64(96), i % T.int64(96))
                        y[v0, v1] = x[v0, v1] + T.float32(1)

    after = scheduled(legalized(lambda x: op.add(x, relax.const(1.0, "float32")), matrix("float32")))
    tvm.ir.assert_structural_equal(kernel(after), Expected["add"])


@pytest.mark.parametrize(("rows", "parallel"), [(1, False), (1000, True)])
def test_a_constant_size_is_decided_at_compile_time(rows, parallel):
    script = kernel(scheduled(legalized(op.exp, matrix("float32", rows)))).script()
    assert ("T.parallel" in script) == parallel
    assert "if " not in script


def test_hand_written_kernels_stay():
    mod = legalized(op.exp, matrix("float32"))
    var = next(var for var, func in mod.functions_items() if isinstance(func, tvm.tirx.PrimFunc))
    mod[var] = mod[var].with_attr("tirx.is_scheduled", True)
    tvm.ir.assert_structural_equal(scheduled(mod), mod)
