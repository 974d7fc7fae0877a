"""Elementary functions on arrays: computed in float64 by kernels of fpsim's own, rounded once to the format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fpsim.backend import numba as kernels
from fpsim.backend.subnormals import refuse_flush_to_zero
from fpsim.numbers import arguments
from fpsim.numbers.computing import require_arithmetic
from fpsim.numbers.encoding import require_values
from fpsim.numbers.formats import Format
from fpsim.numbers.names import get_float_format
from fpsim.numbers.rounding import Rounding, get_rounding, round_into

#: Formats of more bits get 0.5 + 2^-20 ulp instead of correct rounding.
CORRECT_UP_TO = 11
_NEAREST = (Rounding.NEAREST_EVEN, Rounding.NEAREST_AWAY)
_BLOCK = 1 << 14

#: The functions, as `backend/numba/functions.py` has them.
NAMES = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh",
    "tanh", "asinh", "acosh", "atanh", "sigmoid", "erf", "erfc", "rsqrt",
)  # fmt: skip


@dataclass(frozen=True)
class Below:
    """What a function's magnitude stays below by less than float64 may show.

    slope, where  the multiple of its argument's magnitude that it stays below, for small arguments where `where` is true
    limit         the power of two that it stays below for every finite argument but 0, if there is one
    """

    slope: float = 0.0
    where: Callable[[np.ndarray], np.ndarray] = np.isfinite
    limit: float = 0.0


def is_negative(x: np.ndarray) -> np.ndarray:
    return x < 0


BELOW = {
    "sin": Below(1.0, limit=1.0),
    "tanh": Below(1.0, limit=1.0),
    "atan": Below(1.0),
    "asinh": Below(1.0),
    "log1p": Below(1.0, where=lambda x: x > 0),
    "expm1": Below(1.0, where=is_negative, limit=1.0),
    "cos": Below(limit=1.0),
    "erf": Below(limit=1.0),
    "sigmoid": Below(limit=1.0),
    "erfc": Below(limit=2.0),
}


def settle_flushing(below: Below | None, x: np.ndarray, value: np.ndarray, fmt: Format) -> None:
    """Lower float64's values of a function of x that are `fmt.min_normal` where the exact ones are below: in place.

    Formats that flush before rounding tell the difference. Elsewhere a value so close to a power of two is one (2^3, log2 8).
    """
    if fmt.flush != "before" or below is None:
        return
    least = fmt.min_normal
    wrong = (below.slope * np.abs(x) == least) & below.where(x)
    if below.limit == least:
        wrong |= np.isfinite(x) & (x != 0)
    wrong &= np.abs(value) == least
    value[wrong] = np.nextafter(value[wrong], 0.0)


def _require(fmt: Format, rounding: Rounding, name: str) -> None:
    if rounding not in _NEAREST:
        raise ValueError(
            f"{name} rounds to nearest only (nearest-even, nearest-away), not {rounding}: float64's value does not settle "
            "the other modes"
        )
    require_arithmetic(fmt, Rounding.NEAREST_EVEN)
    if fmt.precision > 24:
        raise ValueError(f"{name} serves formats of at most 24 bits of precision; {fmt.name} has {fmt.precision}")


def _apply(name: str, x: Any, fmt: Any, rounding: str | Rounding, out: Any) -> Any:
    target, mode = get_float_format(fmt, "functions"), get_rounding(rounding)
    _require(target, mode, name)
    refuse_flush_to_zero()
    array, wrap = arguments.as_carrier(x, target, "x")
    destination = None if out is None else arguments.out_array(out, x)
    require_values(array, target, "x")
    result = np.empty(array.shape, array.dtype)
    _compute(name, np.ascontiguousarray(array).reshape(-1), result.reshape(-1), target, mode)
    if destination is None:
        return wrap(result)
    destination[...] = result
    return out


def _compute(name: str, x: np.ndarray, out: np.ndarray, fmt: Format, rounding: Rounding) -> None:
    for start in range(0, x.size, _BLOCK):
        with np.errstate(invalid="ignore"):  # converting a signaling NaN is no error here
            block = x[start : start + _BLOCK].astype(np.float64)
        if fmt.flush_inputs:
            block[np.abs(block) < fmt.min_normal] *= 0.0
        value = np.empty_like(block)
        kernels.functions.apply(name, block, value)
        settle_flushing(BELOW.get(name), block, value, fmt)
        round_into(value, value, fmt, rounding)
        out[start : start + _BLOCK] = value


def _public(name: str) -> Callable[..., Any]:
    def function(x: Any, fmt: Any, rounding: str | Rounding = "nearest-even", *, out: Any = None) -> Any:
        return _apply(name, x, fmt, rounding, out)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"""{name}(x), computed in float64 and rounded once to the format.

    Parameters
    ----------
    x : values of the format, as a Python number, a NumPy array (float16, float32, float64) or a torch tensor on the
        CPU (those and bfloat16).
    fmt : what `get_format` takes: any format that arithmetic serves, up to p = 24.
    rounding : "nearest-even" or "nearest-away". The other modes need more than float64's value and are refused.
    out : an array or tensor of x's type, dtype and shape to write to; it may be x.

    Returns
    -------
    What x is, of the same type, dtype and shape, the same bits on every machine. For p <= {CORRECT_UP_TO} it is correctly
    rounded: no exact value of the named formats lies close enough to a midpoint for float64's last bits to matter, which
    a sweep over all inputs shows. For p > {CORRECT_UP_TO} it is within 0.5 + 2^-20 ulp. NaN and infinities give the limits.

    Raises
    ------
    ValueError : an element that is no value of the format (`round` first), another mode, a dtype that cannot hold
        the format, fp64, a process that flushes subnormals to zero.
    TypeError : integers, complex numbers and other types.
    """
    return function


exp = _public("exp")
exp2 = _public("exp2")
expm1 = _public("expm1")
log = _public("log")
log2 = _public("log2")
log10 = _public("log10")
log1p = _public("log1p")
sin = _public("sin")
cos = _public("cos")
tan = _public("tan")
asin = _public("asin")
acos = _public("acos")
atan = _public("atan")
sinh = _public("sinh")
cosh = _public("cosh")
tanh = _public("tanh")
asinh = _public("asinh")
acosh = _public("acosh")
atanh = _public("atanh")
sigmoid = _public("sigmoid")
erf = _public("erf")
erfc = _public("erfc")
rsqrt = _public("rsqrt")
