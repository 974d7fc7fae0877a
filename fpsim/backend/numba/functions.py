"""Elementary functions on flat float64 arrays: `out[i] = f(x[i])`, with the same bits on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba import error_function, transcendental, trigonometric
from fpsim.backend.numba.compiler import kernel, prefer_wide_vectors
from fpsim.backend.numba.error_function import erf64, erfc64
from fpsim.backend.numba.transcendental import (
    acosh64,
    asinh64,
    atanh64,
    cosh64,
    exp2_64,
    exp64,
    expm1_64,
    log1p_64,
    log2_64,
    log10_64,
    log64,
    power64,
    sigmoid64,
    sinh64,
    tanh64,
)
from fpsim.backend.numba.trigonometric import acos64, asin64, atan64, cos64, sin64, tan64


@kernel
def _exp(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = exp64(x[i])


@kernel
def _exp2(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = exp2_64(x[i])


@kernel
def _expm1(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = expm1_64(x[i])


@kernel
def _log(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = log64(x[i])


@kernel
def _log2(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = log2_64(x[i])


@kernel
def _log10(x: Any, out: Any, powers: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = log10_64(x[i], powers)


@kernel
def _log1p(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = log1p_64(x[i])


@kernel
def _sin(x: Any, out: Any, turned: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = sin64(x[i], turned)


@kernel
def _cos(x: Any, out: Any, turned: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = cos64(x[i], turned)


@kernel
def _tan(x: Any, out: Any, turned: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = tan64(x[i], turned)


@kernel
def _asin(x: Any, out: Any, arctangents: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = asin64(x[i], arctangents)


@kernel
def _acos(x: Any, out: Any, arctangents: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = acos64(x[i], arctangents)


@kernel
def _atan(x: Any, out: Any, arctangents: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = atan64(x[i], arctangents)


@kernel
def _sinh(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = sinh64(x[i])


@kernel
def _cosh(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = cosh64(x[i])


@kernel
def _tanh(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = tanh64(x[i])


@kernel
def _asinh(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = asinh64(x[i])


@kernel
def _acosh(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = acosh64(x[i])


@kernel
def _atanh(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = atanh64(x[i])


@kernel
def _sigmoid(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = sigmoid64(x[i])


@kernel
def _erf(x: Any, out: Any, series: Any, coefficients: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = erf64(x[i], series, coefficients)


@kernel
def _erfc(x: Any, out: Any, series: Any, coefficients: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = erfc64(x[i], series, coefficients)


@kernel
def _rsqrt(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = 1.0 / np.sqrt(x[i])


_KERNELS = {
    "exp": _exp,
    "exp2": _exp2,
    "expm1": _expm1,
    "log": _log,
    "log2": _log2,
    "log10": _log10,
    "log1p": _log1p,
    "sin": _sin,
    "cos": _cos,
    "tan": _tan,
    "asin": _asin,
    "acos": _acos,
    "atan": _atan,
    "sinh": _sinh,
    "cosh": _cosh,
    "tanh": _tanh,
    "asinh": _asinh,
    "acosh": _acosh,
    "atanh": _atanh,
    "sigmoid": _sigmoid,
    "erf": _erf,
    "erfc": _erfc,
    "rsqrt": _rsqrt,
}


def _tables(name: str) -> tuple[np.ndarray, ...]:
    """What else the function's kernel gets."""
    if name in ("sin", "cos", "tan"):
        return (trigonometric.turns(),)
    if name in ("asin", "acos", "atan"):
        return (trigonometric.ARCTANGENTS,)
    if name in ("erf", "erfc"):
        return error_function.SERIES, error_function.COEFFICIENTS
    return (transcendental.POWERS_OF_TEN,) if name == "log10" else ()


def apply(name: str, x: np.ndarray, out: np.ndarray) -> None:
    """out = the function of x; flat float64 arrays of one size, which may be the same one."""
    _KERNELS[name](x, out, *_tables(name))


@kernel
def _power(x: Any, y: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = power64(x[i], y[i])


def power(x: Any, y: Any) -> np.ndarray:
    """x^y of float64 arrays or numbers that broadcast together."""
    base, exponent = np.broadcast_arrays(x, y)
    out = np.empty(base.shape)
    _power(*(np.array(item, np.float64).reshape(-1) for item in (base, exponent)), out.reshape(-1))
    return out
