"""Elementary functions of a float32 as TIR arithmetic that every CPU vectorises: no calls, no rounding instructions."""

import math

from tvm import tirx

from tir_kernels.cpu.llvm_helpers import exp2_coefficients

_LN2_HIGH = 0.693359375  # ln 2 in two parts: n * _LN2_HIGH is exact for |n| < 2^15
_LN2_LOW = math.log(2) - _LN2_HIGH
_LOG2_E = math.log2(math.e)
_SQRT_HALF_BITS = 0x3F3504F3
_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)  # Abramowitz and Stegun 7.1.26
_ERF_SCALE = 0.3275911
_MAX_POWER = 8


class Temporaries:
    """Intermediate values, in the order in which they are computed.

    Each lies in a buffer of one element, a register after LLVM. Let expressions or variables would do as well, but
    TVM's simplifier copies their values into their uses and takes time exponential in the length of the chain.
    """

    def __init__(self) -> None:
        self.buffers = []
        self.stores = []

    def keep(self, value: tirx.Expr) -> tirx.Expr:
        """``value``, computed once."""
        buffer = tirx.decl_buffer((1,), value.ty.dtype, name="t")
        self.buffers.append(buffer)
        self.stores.append(tirx.BufferStore(buffer, value, [0]))
        return tirx.BufferLoad(buffer, [0])


def _f(value: float) -> tirx.FloatImm:
    return tirx.FloatImm("float32", value)


def _i(value: int) -> tirx.IntImm:
    return tirx.IntImm("int32", value)


def _polynomial(x: tirx.Expr, coefficients) -> tirx.Expr:
    result = _f(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + _f(coefficient)
    return result


def _saturating_power(tmp: Temporaries, x: tirx.Expr, low: float, high: float, scale: float, fraction) -> tirx.Expr:
    """2**(x * scale) as 2**n * 2**fraction(clamped x, n); 0 for x below ``low``, inf above ``high``."""
    clamped = tmp.keep(tirx.max(tirx.min(x, _f(high)), _f(low)))
    # n is the nearest integer: truncation of a positive number vectorises everywhere.
    n = tmp.keep((clamped * _f(scale) + _f(128.5)).astype("int32") - _i(128))
    f = tmp.keep(fraction(clamped, tmp.keep(n.astype("float32"))))
    bits = tirx.reinterpret("int32", tmp.keep(_polynomial(f, exp2_coefficients(6))))
    power = tmp.keep(tirx.reinterpret("float32", bits + tirx.shift_left(n, _i(23))))
    return tirx.Select(x > _f(high), _f(math.inf), tirx.Select(x < _f(low), _f(0), power))


def exp2(tmp: Temporaries, x: tirx.Expr) -> tirx.Expr:
    """Saturates at 2**127.4."""
    return _saturating_power(tmp, tmp.keep(x), -126, 127.4, 1, lambda v, n: v - n)


def exp(tmp: Temporaries, x: tirx.Expr) -> tirx.Expr:
    """Saturates at exp(88.3)."""

    def fraction(v, n):
        return (v - n * _f(_LN2_HIGH) - n * _f(_LN2_LOW)) * _f(_LOG2_E)

    return _saturating_power(tmp, tmp.keep(x), -87.3, 88.3, _LOG2_E, fraction)


def sigmoid(tmp: Temporaries, x: tirx.Expr) -> tirx.Expr:
    return _f(1) / (_f(1) + exp(tmp, _f(0) - x))


def tanh(tmp: Temporaries, x: tirx.Expr) -> tirx.Expr:
    v = tmp.keep(x)
    near_zero = v * _polynomial(tmp.keep(v * v), [1, -1 / 3, 2 / 15, -17 / 315, 62 / 2835])
    return tirx.Select(tirx.abs(v) < _f(0.25), near_zero, _f(1) - _f(2) / (exp(tmp, v * _f(2)) + _f(1)))


def erf(tmp: Temporaries, x: tirx.Expr) -> tirx.Expr:
    v = tmp.keep(x)
    t = tmp.keep(_f(1) / (_f(1) + _f(_ERF_SCALE) * tirx.abs(v)))
    magnitude = tmp.keep(_f(1) - t * _polynomial(t, _ERF) * exp(tmp, _f(0) - v * v))
    return tirx.Select(v < _f(0), _f(0) - magnitude, magnitude)


def _log_parts(tmp: Temporaries, x: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
    """Exponent and natural logarithm of the mantissa, which lies in sqrt(1/2)..sqrt(2)."""
    bits = tmp.keep(tirx.reinterpret("int32", x))
    exponent = tmp.keep(tirx.shift_right(bits - _i(_SQRT_HALF_BITS), _i(23)))
    mantissa = tmp.keep(tirx.reinterpret("float32", bits - tirx.shift_left(exponent, _i(23))))
    s = tmp.keep((mantissa - _f(1)) / (mantissa + _f(1)))
    series = _polynomial(tmp.keep(s * s), [1, 1 / 3, 1 / 5, 1 / 7, 1 / 9])
    return exponent.astype("float32"), _f(2) * s * series


def _log_domain(x: tirx.Expr, value: tirx.Expr) -> tirx.Expr:
    """The logarithm of 0 is -inf, of a negative number NaN, of inf inf."""
    special = tirx.Select(x < _f(0), _f(math.nan), tirx.Select(x > _f(0), x, _f(-math.inf)))
    return tirx.Select(tirx.And(x > _f(0), x < _f(math.inf)), value, special)


def log(tmp: Temporaries, x: tirx.Expr) -> tirx.Expr:
    v = tmp.keep(x)
    exponent, mantissa = _log_parts(tmp, v)
    return _log_domain(v, exponent * _f(_LN2_HIGH) + (exponent * _f(_LN2_LOW) + mantissa))


def log2(tmp: Temporaries, x: tirx.Expr) -> tirx.Expr:
    v = tmp.keep(x)
    exponent, mantissa = _log_parts(tmp, v)
    return _log_domain(v, exponent + mantissa * _f(_LOG2_E))


def is_small_power(exponent: tirx.Expr) -> bool:
    """Whether :func:`power` can do it: a constant 1/2 or 1, 2, ... 8."""
    return isinstance(exponent, tirx.FloatImm) and exponent.value in (0.5, *range(1, _MAX_POWER + 1))


def power(tmp: Temporaries, x: tirx.Expr, exponent: tirx.FloatImm) -> tirx.Expr:
    if exponent.value == 0.5:
        return tirx.sqrt(x)
    factor = tmp.keep(x)
    result = factor
    for _ in range(int(exponent.value) - 1):
        result = result * factor
    return result


FUNCTIONS = {
    "exp": exp,
    "exp2": exp2,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "erf": erf,
    "log": log,
    "log2": log2,
    "pow": power,
}
