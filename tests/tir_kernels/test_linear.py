"""linear() and swiglu() in every vector tier against float64 products of the rounded or quantized inputs.

Error bounds: a sum of k products in float32 is within (k + 2) * 2**-24 of the sum of their magnitudes whatever the
order, and rounding the result to bfloat16 adds 2**-8 of it. Few rows multiply 4-bit weights as 128 + q and correct by
128 times the sum of x: magnitudes are those of x * (scale * 271 + minimum), but only over the 32 products of a group;
then K / 32 groups are added. With many rows a CPU that has 8-bit dot products rounds activations and 4-bit weights to
steps of 1/127 of the largest: each is off by half a step at most.
"""

import re
from functools import lru_cache

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import tirx as T

from tir_kernels.cpu.isa import vector_isa
from tir_kernels.cpu.linear import linear, swiglu
from tir_kernels.weight_format import FORMATS

FORMAT_DTYPES = [("f32_n32", "float32"), ("bf16_n32k2", "bfloat16"), ("q4_n32g32", "bfloat16")]
ROWS = (1, 2, 3, 7, 8, 11, 33, 129)
K = 416  # not a multiple of the blocks of K that some tiers use
WIDE_K = 448  # a multiple of 64: activations that are rounded to 8 bits share a scale over 64 of k, not 32
FLOAT32_UNIT, BFLOAT16_UNIT = 2.0**-24, 2.0**-8


def _numpy_dtype(name: str):
    return ml_dtypes.bfloat16 if name == "bfloat16" else np.float32


@lru_cache
def _build(target, factory, *args, **options):
    function = factory(*args, isa=vector_isa(target), **options)
    return tvm.compile(tvm.IRModule({"main": function}), target=target)


def _run(module, arrays: list, out_shape: tuple, out_dtype: str) -> np.ndarray:
    out = tvm.runtime.tensor(np.full(out_shape, np.nan, _numpy_dtype(out_dtype)))
    module["main"](*map(tvm.runtime.tensor, arrays), out)
    return out.numpy().astype(np.float64)


def _weight(n: int, k: int, format_name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A packed weight, its float64 values, and per value the error that it may add to a sum, per unit of abs(x).

    4-bit weights have scales of three bits and minima that are multiples of them, so that scale * q + minimum is a
    bfloat16 and every kernel path is exact.
    """
    rng = np.random.default_rng(n)
    values = rng.standard_normal((n, k)).astype(np.float32)
    if format_name == "q4_n32g32":
        scale = rng.integers(4, 8, (n, k // 32, 1)) * rng.choice([-1.0, 1.0], (n, k // 32, 1)) / 32
        minimum = scale * rng.integers(-12, -2, scale.shape)
        values = (scale * rng.integers(0, 16, (n, k // 32, 32)) + minimum).reshape(n, k).astype(np.float32)
        packed = FORMATS[format_name].pack(values)
        assert (FORMATS[format_name].unpack(packed, n, k) == values).all()
        errors = np.repeat(np.abs(scale) * 271 + np.abs(minimum), 32, axis=2).reshape(n, k)
        return packed, values.astype(np.float64), (34 + k // 32) * FLOAT32_UNIT * errors
    packed = FORMATS[format_name].pack(values)
    values = FORMATS[format_name].unpack(packed, n, k).astype(np.float64)
    return packed, values, (k + 2) * FLOAT32_UNIT * np.abs(values)


def _int8_steps(x: np.ndarray, packed: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps to which many rows of 4-bit products round: of x [m, k] a group of 64 or 32, of the weight [n] a row."""
    group = 64 if x.shape[1] % 64 == 0 else 32
    largest_x = np.abs(x.astype(np.float64)).reshape(len(x), -1, group).max(2)
    halves = np.ascontiguousarray(packed[..., 128:]).view(np.float16).astype(np.float64)
    scales, minima = np.split(halves, 2, axis=-1)  # [panel, group, row]
    largest_w = np.maximum(np.abs(minima), np.abs(15 * scales + minima)).max(1).reshape(-1)[:n]
    return np.repeat(largest_x, group, axis=1) / 127, largest_w / 127


def _int8_error(isa, format_name: str, x: np.ndarray, w: np.ndarray, packed: np.ndarray) -> np.ndarray | float:
    """What rounding to 8 bits may add to the sums x @ w.T; 0 where no kernel does it."""
    if format_name != "q4_n32g32" or not isa.has_int8_dot or len(x) <= 8:
        return 0.0
    x_step, w_step = _int8_steps(x, packed, len(w))
    x_part = x_step @ np.abs(w).T
    w_part = (np.abs(x.astype(np.float64)) + x_step / 2).sum(1, keepdims=True) * w_step
    return 1.001 * (x_part + w_part) / 2  # float32 places the middle of a step not quite exactly


def _normal(shape, dtype: str, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(_numpy_dtype(dtype))


def _unit(dtype: str) -> float:
    return BFLOAT16_UNIT if dtype == "bfloat16" else FLOAT32_UNIT


@pytest.mark.parametrize("format_name,dtype", FORMAT_DTYPES)
@pytest.mark.parametrize(
    "n,bias,residual,out_dtype", [(96, False, False, None), (45, True, True, None), (64, True, False, "float32")]
)
def test_linear(isa_target, format_name, dtype, n, bias, residual, out_dtype):
    target, isa = isa_target
    packed, w, w_error = _weight(n, K, format_name)
    options = {"bias": bias, "residual": residual, "out_dtype": out_dtype}
    module = _build(target, linear, n, K, format_name, dtype, **options)
    for m in ROWS:
        x, b, r = _normal((m, K), dtype, m), _normal(n, dtype, 1), _normal((m, n), dtype, 2)
        arrays = [x, packed] + [b] * bias + [r] * residual
        result = _run(module, arrays, (m, n), out_dtype or dtype)
        expected = x.astype(np.float64) @ w.T + bias * b.astype(np.float64) + residual * r.astype(np.float64)
        addends = np.abs(b.astype(np.float64)) + np.abs(r.astype(np.float64))
        sum_error = np.abs(x.astype(np.float64)) @ w_error.T + 2 * FLOAT32_UNIT * addends
        sum_error += _int8_error(isa, format_name, x, w, packed)
        bound = sum_error + _unit(out_dtype or dtype) * (np.abs(expected) + sum_error)
        assert (np.abs(result - expected) <= bound).all(), f"m={m}"


@pytest.mark.parametrize("m", [1, 40])
@pytest.mark.parametrize("format_name,dtype", FORMAT_DTYPES)
def test_linear_with_fixed_rows_equals_variable_rows(isa_target, format_name, dtype, m):
    target, _ = isa_target
    packed, _, _ = _weight(96, K, format_name)
    arrays = [_normal((m, K), dtype, 3), packed]
    fixed, variable = (_build(target, linear, 96, K, format_name, dtype, **options) for options in ({"m": m}, {}))
    np.testing.assert_array_equal(_run(fixed, arrays, (m, 96), dtype), _run(variable, arrays, (m, 96), dtype))


@pytest.mark.parametrize("k", [K, WIDE_K])
@pytest.mark.parametrize("m", [1, 8, 129])
def test_q4_with_any_scales_is_within_one_rounding_a_weight(isa_target, m, k):
    """Above a few rows each weight is rounded to bfloat16 or 8 bits."""
    target, isa = isa_target
    packed = FORMATS["q4_n32g32"].pack(_normal((96, k), "float32", 4))
    w = FORMATS["q4_n32g32"].unpack(packed, 96, k).astype(np.float64)
    x = _normal((m, k), "bfloat16", 5)
    module = _build(target, linear, 96, k, "q4_n32g32", "bfloat16")
    result = _run(module, [x, packed], (m, 96), "bfloat16")
    expected = x.astype(np.float64) @ w.T
    bound = 1.1 * BFLOAT16_UNIT * np.abs(x.astype(np.float64)) @ np.abs(w).T + BFLOAT16_UNIT * np.abs(expected)
    assert (np.abs(result - expected) <= bound + 1.01 * _int8_error(isa, "q4_n32g32", x, w, packed)).all()


@pytest.mark.parametrize("k", [K, WIDE_K])
def test_8_bit_errors_are_those_of_independent_roundings(isa_target, k):
    """A rounding to a step has the variance step**2 / 12, and the errors of a sum add up as variances."""
    target, isa = isa_target
    if not isa.has_int8_dot:
        pytest.skip("this tier multiplies no 8-bit integers")
    packed = FORMATS["q4_n32g32"].pack(_normal((96, k), "float32", 4))
    w = FORMATS["q4_n32g32"].unpack(packed, 96, k).astype(np.float64)
    x = _normal((129, k), "bfloat16", 5)
    module = _build(target, linear, 96, k, "q4_n32g32", "bfloat16", out_dtype="float32")
    errors = _run(module, [x, packed], (129, 96), "float32") - x.astype(np.float64) @ w.T
    x_step, w_step = _int8_steps(x, packed, 96)
    variances = np.square(x_step) @ np.square(w).T + np.square(x.astype(np.float64)).sum(1)[:, None] * w_step**2
    assert np.square(errors).mean() == pytest.approx(variances.mean() / 12, rel=0.1)
    assert abs(errors.mean()) < 4 * np.sqrt(variances.mean() / 12 / 96)


def test_rows_and_activations_of_zeros(isa_target):
    target, _ = isa_target
    w = _normal((64, 64), "float32", 6)
    w[5], w[:, 32:] = 0, 0
    x = _normal((40, 64), "bfloat16", 7)
    x[3], x[4:, :32] = 0, 0
    module = _build(target, linear, 64, 64, "q4_n32g32", "bfloat16")
    result = _run(module, [x, FORMATS["q4_n32g32"].pack(w)], (40, 64), "bfloat16")
    assert (result[3:] == 0).all() and (result[:, 5] == 0).all() and np.isfinite(result).all() and result.any()


@pytest.mark.parametrize("format_name,dtype", FORMAT_DTYPES)
def test_swiglu(isa_target, format_name, dtype):
    """The gate adds the error of the fast exponential (1e-4) to those of the two products."""
    target, isa = isa_target
    intermediate_size = 96
    packed, w, w_error = _weight(2 * intermediate_size, K, format_name)
    module = _build(target, swiglu, intermediate_size, K, format_name, dtype)
    for m in (1, 3, 8, 33, 129):
        x = (_normal((m, K), "float32", m) / 16).astype(_numpy_dtype(dtype))
        result = _run(module, [x, packed], (m, intermediate_size), dtype)
        gate, up = np.split(x.astype(np.float64) @ w.T, 2, axis=1)
        sum_error = np.abs(x.astype(np.float64)) @ w_error.T + _int8_error(isa, format_name, x, w, packed)
        gate_error, up_error = np.split(sum_error, 2, axis=1)
        expected = gate / (1 + np.exp(-gate)) * up
        rounding = _unit(dtype) + (1.5e-4 if dtype == "bfloat16" else 1e-6)
        # The slope of silu is below 1.1, and abs(silu(x)) <= abs(x).
        bound = 1.1 * gate_error * (np.abs(up) + up_error) + np.abs(gate) * up_error + rounding * np.abs(expected)
        assert (np.abs(result - expected) <= bound).all(), f"m={m}"


@pytest.mark.parametrize("format_name,dtype", FORMAT_DTYPES)
def test_code_calls_nothing_but_the_runtime(isa_target, format_name, dtype):
    """A helper that is not inlined or a conversion by library call would cost more than the product."""
    target, isa = isa_target
    code = _build(target, linear, 96, K, format_name, dtype).mod.inspect_source("asm")
    called = set(re.findall(r"\bcallq?\s+([A-Za-z_]\w*)", code))
    assert {name for name in called if not name.upper().startswith(("TVM", "__TVM"))} <= {"memset", "memcpy"}
    if isa.has_bf16_dot and dtype == "bfloat16":
        assert "vdpbf16ps" in code
        assert ("vpdpbusd" in code) == (format_name == "q4_n32g32")


def test_called_from_relax(isa_target):
    target, isa = isa_target
    builder = relax.BlockBuilder()
    m = T.int64()
    x = relax.Var("x", relax.TensorType((m, K), "bfloat16"))
    w = relax.Var("w", relax.TensorType(FORMATS["bf16_n32k2"].packed_shape(96, K), "bfloat16"))
    with builder.function("main", [x, w]):
        function = builder.add_func(linear(96, K, "bf16_n32k2", "bfloat16", isa), "linear")
        builder.emit_func_output(builder.emit(relax.call_tir(function, [x, w], relax.TensorType((m, 96), "bfloat16"))))
    machine = relax.VirtualMachine(tvm.compile(builder.get(), target=target), tvm.cpu())
    packed, _, _ = _weight(96, K, "bf16_n32k2")
    for rows in (1, 33):
        inputs = [_normal((rows, K), "bfloat16", rows), packed]
        result = machine["main"](*map(tvm.runtime.tensor, inputs)).numpy().astype(np.float64)
        expected = _run(_build(target, linear, 96, K, "bf16_n32k2", "bfloat16"), inputs, (rows, 96), "bfloat16")
        np.testing.assert_array_equal(result, expected)


def test_format_and_dtype_have_to_agree(isa_target):
    with pytest.raises(ValueError, match="f32_n32"):
        linear(32, 32, "f32_n32", "bfloat16", isa_target[1])
    with pytest.raises(ValueError, match="multiple of 32"):
        swiglu(40, 32, "f32_n32", "float32", isa_target[1])
