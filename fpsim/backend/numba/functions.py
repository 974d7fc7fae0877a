"""Elementary functions on flat float64 arrays: `out[i] = f(x[i])`, with the same bits on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np

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
from fpsim.backend.numba.trigonometric import acos64, asin64, atan64, cos64, is_far, reduced, reduced_near, sin64, tan64, turns


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
def _log10(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = log10_64(x[i])


@kernel
def _log1p(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = log1p_64(x[i])


_BLOCK = 256


def _make_circular(function: Any) -> Any:
    """The kernel of sin64, cos64 or tan64. Blocks of numbers that need no table become vectors."""

    @kernel
    def circular(x: Any, out: Any, table: Any) -> None:
        prefer_wide_vectors()
        for start in range(0, x.size, _BLOCK):
            values, results = x[start : start + _BLOCK], out[start : start + _BLOCK]
            far = 0
            for i in range(values.size):
                far += is_far(values[i])
            if far:
                for i in range(values.size):
                    n, r = reduced(values[i], table)
                    results[i] = function(values[i], n, r)
            else:
                for i in range(values.size):
                    n, r = reduced_near(values[i])
                    results[i] = function(values[i], n, r)

    return circular


@kernel
def _asin(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = asin64(x[i])


@kernel
def _acos(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = acos64(x[i])


@kernel
def _atan(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = atan64(x[i])


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
def _erf(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = erf64(x[i])


@kernel
def _erfc(x: Any, out: Any) -> None:
    prefer_wide_vectors()
    for i in range(x.size):
        out[i] = erfc64(x[i])


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
    "sin": _make_circular(sin64),
    "cos": _make_circular(cos64),
    "tan": _make_circular(tan64),
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


def apply(name: str, x: np.ndarray, out: np.ndarray) -> None:
    """out = the function of x; flat float64 arrays of one size, which may be the same one."""
    tables = (turns(),) if name in ("sin", "cos", "tan") else ()
    _KERNELS[name](x, out, *tables)


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
