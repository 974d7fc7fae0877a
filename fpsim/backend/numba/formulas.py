"""Formulas of several elementary functions, element by element, on float64 numbers: the same bits on every machine.

The numbers of an operand lie side by side at an address: arrays take longer to pass than a few results take to compute.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.error_function import erfc64
from fpsim.backend.numba.intrinsics import as_bits, as_float, doubles_at, prefer_wide_vectors
from fpsim.backend.numba.transcendental import exp2_64, exp64, expm1_64, log1p_64, log64, power64, tanh64
from fpsim.backend.numba.trigonometric import atan64, reduced, sin64, turns

_INFINITY = math.inf
_MAGNITUDE, _SIGN = np.int64(2**63 - 1), np.int64(-(2**63))
_ROOT_HALF = math.sqrt(0.5)
_TWICE_ROOT = 2.0 * math.sqrt(2.0 / math.pi)
_DENSITY = _ROOT_HALF / math.sqrt(math.pi)
_PI, _REST_OF_PI = math.pi, 1.2246467991473532e-16
_PER_BIT = 1.0 / math.log(2.0)
_LEAST_LOGARITHM = -100.0


# Factories of kernels: of so many operands, and so many numbers


def _of_one(function: Any) -> Any:
    @kernel
    def of_one(size: int, first: int, target: int) -> None:
        prefer_wide_vectors()
        x, out = doubles_at(first, size), doubles_at(target, size)
        for i in range(size):
            out[i] = function(x[i])

    return of_one


def _of_one_and_number(function: Any) -> Any:
    @kernel
    def of_one_and_number(size: int, first: int, target: int, number: float) -> None:
        x, out = doubles_at(first, size), doubles_at(target, size)
        for i in range(size):
            out[i] = function(x[i], number)

    return of_one_and_number


def _of_two(function: Any) -> Any:
    @kernel
    def of_two(size: int, first: int, second: int, target: int) -> None:
        prefer_wide_vectors()
        x, y, out = doubles_at(first, size), doubles_at(second, size), doubles_at(target, size)
        for i in range(size):
            out[i] = function(x[i], y[i])

    return of_two


# Activations


@inlined
def logistic(x: Any) -> Any:
    return 1.0 / (1.0 + exp64(-x))


@inlined
def _silu(x: Any) -> Any:
    return x / (1.0 + exp64(-x))


@inlined
def _silu_gradient(gradient: Any, x: Any) -> Any:
    s = logistic(x)
    return gradient * s * (1.0 + x * (1.0 - s))


@inlined
def _gelu(x: Any) -> Any:
    """x erfc(-x / sqrt 2) / 2, which keeps what 1 + erf(x / sqrt 2) cancels."""
    return x * (0.5 * erfc64(-x * _ROOT_HALF))


@inlined
def _gelu_gradient(gradient: Any, x: Any) -> Any:
    density = exp64(x * x * -0.5) * _DENSITY
    return gradient * (0.5 * erfc64(-x * _ROOT_HALF) + x * density)


@inlined
def _gelu_tanh(x: Any) -> Any:
    """(1 + tanh u) / 2 is 1 / (1 + e^-2u)."""
    return x * logistic(_TWICE_ROOT * (x + 0.044715 * (x * x * x)))


@inlined
def _mish(x: Any) -> Any:
    return x * tanh64(log1p_64(exp64(x)))


@inlined
def _mish_gradient(gradient: Any, x: Any) -> Any:
    s, t = logistic(x), tanh64(log1p_64(exp64(x)))
    return gradient * (t + x * s * (1.0 - t * t))


@inlined
def _exp_below(x: Any) -> Any:
    return exp64(-abs(x))


@inlined
def _log_sigmoid(x: Any) -> Any:
    return (0.0 if x > 0.0 else x) - log1p_64(_exp_below(x))


@kernel
def _softplus(size: int, first: int, target: int, beta: float, threshold: float) -> None:
    prefer_wide_vectors()
    x, out = doubles_at(first, size), doubles_at(target, size)
    for i in range(size):
        turned = x[i] * beta
        out[i] = x[i] if turned > threshold else log1p_64(exp64(turned)) / beta


@kernel
def _softplus_gradient(size: int, first: int, second: int, target: int, beta: float, threshold: float) -> None:
    prefer_wide_vectors()
    gradient, x, out = doubles_at(first, size), doubles_at(second, size), doubles_at(target, size)
    for i in range(size):
        turned = x[i] * beta
        z = exp64(turned)
        out[i] = gradient[i] if turned > threshold else gradient[i] * z / (z + 1.0)


@kernel
def _elu(size: int, first: int, target: int, scale: float, below: float, input_scale: float) -> None:
    prefer_wide_vectors()
    x, out = doubles_at(first, size), doubles_at(target, size)
    for i in range(size):
        out[i] = x[i] * scale if x[i] > 0.0 else expm1_64(x[i] * input_scale) * below


@kernel
def _elu_gradient(size: int, first: int, second: int, target: int, scale: float, slope: float, input_scale: float) -> None:
    prefer_wide_vectors()
    gradient, x, out = doubles_at(first, size), doubles_at(second, size), doubles_at(target, size)
    for i in range(size):
        out[i] = gradient[i] * (scale if x[i] > 0.0 else slope * exp64(x[i] * input_scale))


# Logarithms, powers and angles


@inlined
def _x_log_y(x: Any, y: Any) -> Any:
    """0 where x is 0, NaN where y is."""
    return 0.0 if x == 0.0 and y == y else x * log64(y)


@inlined
def _x_log1p_y(x: Any, y: Any) -> Any:
    return 0.0 if x == 0.0 and y == y else x * log1p_64(y)


@inlined
def _entropy(x: Any) -> Any:
    if x != x:
        return x
    return -x * log64(x) if x > 0.0 else 0.0 if x == 0.0 else -_INFINITY


@inlined
def _log_add(x: Any, y: Any) -> Any:
    summed = (x if x > y else y) + log1p_64(exp64(-abs(x - y)))
    return x if abs(x) == _INFINITY and x == y else summed


@inlined
def _log_add2(x: Any, y: Any) -> Any:
    summed = (x if x > y else y) + log1p_64(exp2_64(-abs(x - y))) * _PER_BIT
    return x if abs(x) == _INFINITY and x == y else summed


@inlined
def _hypotenuse(x: Any, y: Any) -> Any:
    """Squares of float32 numbers are exact in float64 and do not overflow."""
    return _INFINITY if abs(x) == _INFINITY or abs(y) == _INFINITY else np.sqrt(x * x + y * y)


@inlined
def _angle(y: Any, x: Any) -> Any:
    ratio = abs(y) / abs(x)
    if y == 0.0:
        ratio = x if x != x else 0.0
    elif abs(y) == _INFINITY and abs(x) == _INFINITY:
        ratio = 1.0
    angle = atan64(ratio)
    if as_bits(x) < 0:
        angle = _PI - (angle - _REST_OF_PI)
    return as_float((as_bits(angle) & _MAGNITUDE) | (as_bits(y) & _SIGN))


@kernel
def _sinc(size: int, first: int, target: int, table: Any) -> None:
    x, out = doubles_at(first, size), doubles_at(target, size)
    for i in range(size):
        turned = _PI * x[i]
        n, r = reduced(turned, table)
        out[i] = 1.0 if x[i] == 0.0 else sin64(turned, n, r) / turned


# Losses


@inlined
def _bounded(logarithm: Any) -> Any:
    return _LEAST_LOGARITHM if logarithm < _LEAST_LOGARITHM else logarithm


@inlined
def _cross_entropy(x: Any, target: Any) -> Any:
    return (target - 1.0) * _bounded(log1p_64(-x)) - target * _bounded(log64(x))


@inlined
def _cross_entropy_of_logit(x: Any, target: Any) -> Any:
    return (1.0 - target) * x - _log_sigmoid(x)


#: By name: the kernel, and of how many operands it is.
_KERNELS = {
    "logistic": (_of_one(logistic), 1),
    "silu": (_of_one(_silu), 1),
    "silu_gradient": (_of_two(_silu_gradient), 2),
    "gelu": (_of_one(_gelu), 1),
    "gelu_gradient": (_of_two(_gelu_gradient), 2),
    "gelu_tanh": (_of_one(_gelu_tanh), 1),
    "mish": (_of_one(_mish), 1),
    "mish_gradient": (_of_two(_mish_gradient), 2),
    "exp_below": (_of_one(_exp_below), 1),
    "log_sigmoid": (_of_one(_log_sigmoid), 1),
    "softplus": (_softplus, 1),
    "softplus_gradient": (_softplus_gradient, 2),
    "elu": (_elu, 1),
    "elu_gradient": (_elu_gradient, 2),
    "x_log_y": (_of_two(_x_log_y), 2),
    "x_log1p_y": (_of_two(_x_log1p_y), 2),
    "entropy": (_of_one(_entropy), 1),
    "log_add": (_of_two(_log_add), 2),
    "log_add2": (_of_two(_log_add2), 2),
    "hypotenuse": (_of_two(_hypotenuse), 2),
    "angle": (_of_two(_angle), 2),
    "power": (_of_two(power64), 2),
    "power_by_number": (_of_one_and_number(power64), 1),
    "sinc": (_sinc, 1),
    "cross_entropy": (_of_two(_cross_entropy), 2),
    "cross_entropy_of_logit": (_of_two(_cross_entropy_of_logit), 2),
}
NAMES = tuple(_KERNELS)


def operands_of(name: str) -> int:
    """Of how many operands a formula is, beside numbers."""
    return _KERNELS[name][1]


def apply(name: str, size: int, *arguments: Any) -> None:
    """So many results, of operands at as many addresses as the formula has; the results' address follows, and then numbers."""
    tables = (turns(),) if name == "sinc" else ()
    _KERNELS[name][0](size, *arguments, *tables)
