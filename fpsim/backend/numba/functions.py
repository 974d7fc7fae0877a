"""Elementary functions on flat float64 arrays: `out[i] = f(x[i])`, with the same bits on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.error_function import erf64, erfc64
from fpsim.backend.numba.intrinsics import prefer_wide_vectors
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

_BLOCK = 256


def _make_pointwise(function: Any) -> Any:
    """The kernel of a function of one number."""

    @kernel
    def pointwise(x: Any, out: Any) -> None:
        prefer_wide_vectors()
        for i in range(x.size):
            out[i] = function(x[i])

    return pointwise


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


@inlined
def _rsqrt64(x: Any) -> Any:
    return 1.0 / np.sqrt(x)


_KERNELS = {
    "exp": _make_pointwise(exp64),
    "exp2": _make_pointwise(exp2_64),
    "expm1": _make_pointwise(expm1_64),
    "log": _make_pointwise(log64),
    "log2": _make_pointwise(log2_64),
    "log10": _make_pointwise(log10_64),
    "log1p": _make_pointwise(log1p_64),
    "sin": _make_circular(sin64),
    "cos": _make_circular(cos64),
    "tan": _make_circular(tan64),
    "asin": _make_pointwise(asin64),
    "acos": _make_pointwise(acos64),
    "atan": _make_pointwise(atan64),
    "sinh": _make_pointwise(sinh64),
    "cosh": _make_pointwise(cosh64),
    "tanh": _make_pointwise(tanh64),
    "asinh": _make_pointwise(asinh64),
    "acosh": _make_pointwise(acosh64),
    "atanh": _make_pointwise(atanh64),
    "sigmoid": _make_pointwise(sigmoid64),
    "erf": _make_pointwise(erf64),
    "erfc": _make_pointwise(erfc64),
    "rsqrt": _make_pointwise(_rsqrt64),
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
