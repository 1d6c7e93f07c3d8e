import math

import numpy as np
import pytest
import tvm
from tvm import te, tirx
from tvm.target import Target

from passes.vectorizable_math import vectorizable_math

TARGET = Target({"kind": "llvm", "mcpu": "x86-64"})


def elementwise(function) -> tirx.PrimFunc:
    """y[i] = function(x[i])."""
    x = te.placeholder((te.var("n", "int64"),), name="x")
    return te.create_prim_func([x, te.compute(x.shape, lambda i: function(x[i]), name="y")])


def calls(func: tirx.PrimFunc, name: str) -> int:
    return func.script().count(f"T.{name}(")


def evaluate(func: tirx.PrimFunc, x: np.ndarray) -> np.ndarray:
    kernel = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=TARGET)["main"]
    y = tvm.runtime.tensor(np.full(x.shape, 7, np.float32))
    kernel(tvm.runtime.tensor(x), y)
    return y.numpy()


WIDE = np.linspace(-87, 88, 100001)
AROUND_ZERO = np.concatenate([-np.logspace(-20, 1, 5001), [0.0], np.logspace(-20, 1, 5001)])
POSITIVE = np.logspace(-37, 38, 10001)

RELATIVE = {
    "exp": (np.exp, WIDE),
    "exp2": (np.exp2, np.linspace(-125, 127, 100001)),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), WIDE),
    "tanh": (np.tanh, AROUND_ZERO),
    "log": (np.log, POSITIVE),
    "log2": (np.log2, POSITIVE),
}


@pytest.mark.parametrize("name", RELATIVE)
def test_relative_error_below_1e_6(name):
    reference, x = RELATIVE[name]
    x = x.astype(np.float32)
    func = vectorizable_math(elementwise(getattr(tirx, name)))
    assert calls(func, name) == 0
    np.testing.assert_allclose(evaluate(func, x), reference(x.astype(np.float64)), rtol=1e-6)


def test_absolute_error_of_erf_below_1e_6():
    x = AROUND_ZERO.astype(np.float32)
    func = vectorizable_math(elementwise(tirx.erf))
    assert calls(func, "erf") == 0
    np.testing.assert_allclose(evaluate(func, x), np.vectorize(math.erf)(x.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize(
    ("function", "x", "expected"),
    [
        (tirx.exp, [-np.inf, -200, 0, 200, np.inf], [0, 0, 1, np.inf, np.inf]),
        (tirx.exp2, [-np.inf, -500, 500, np.inf], [0, 0, np.inf, np.inf]),
        (tirx.sigmoid, [-np.inf, -200, 200, np.inf], [0, 0, 1, 1]),
        (tirx.tanh, [-np.inf, -200, 200, np.inf], [-1, -1, 1, 1]),
        (tirx.log, [-1, 0, 1, np.inf], [np.nan, -np.inf, 0, np.inf]),
    ],
)
def test_limits(function, x, expected):
    actual = evaluate(vectorizable_math(elementwise(function)), np.array(x, np.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 3.0, 8.0])
def test_small_powers_are_products(exponent):
    func = vectorizable_math(elementwise(lambda v: tirx.power(v, tirx.FloatImm("float32", exponent))))
    assert calls(func, "pow") == 0
    x = np.linspace(0, 5, 101).astype(np.float32)
    np.testing.assert_allclose(evaluate(func, x), x.astype(np.float64) ** exponent, rtol=1e-6)


def test_other_powers_stay_calls():
    func = elementwise(lambda v: tirx.power(v, tirx.FloatImm("float32", 1.7)))
    assert calls(vectorizable_math(func), "pow") == 1


def test_equal_calls_are_computed_once():
    once = vectorizable_math(elementwise(tirx.tanh)).script()
    twice = vectorizable_math(elementwise(lambda v: tirx.tanh(v) * (tirx.tanh(v) + 1.0))).script()
    assert twice.count("reinterpret") == once.count("reinterpret")


def test_a_call_behind_a_condition_stays():
    """The argument may lie outside the buffer where the condition is false."""
    x = te.placeholder((4,), name="x")
    y = te.compute((8,), lambda i: tirx.if_then_else(i < 4, tirx.exp(x[i]), tirx.FloatImm("float32", 0)), name="y")
    func = te.create_prim_func([x, y])
    tvm.ir.assert_structural_equal(vectorizable_math(func), func)


def test_long_chains_compile_in_linear_time():
    """A chain of 24 takes 2^24 steps if a pass of TVM copies intermediate values into their uses."""

    def chain(v):
        for _ in range(24):
            v = tirx.tanh(v) + tirx.FloatImm("float32", 0.5)
        return v

    x = np.linspace(-2, 2, 9).astype(np.float32)
    expected = x.astype(np.float64)
    for _ in range(24):
        expected = np.tanh(expected) + 0.5
    np.testing.assert_allclose(evaluate(vectorizable_math(elementwise(chain)), x), expected, rtol=1e-5)
