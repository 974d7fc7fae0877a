"""Rounding to a number system."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.subnormals import refuse_flush_to_zero
from fpsim.numbers import arguments
from fpsim.numbers.names import get_system
from fpsim.numbers.rounding import Rounding, get_rounding, seed_key


def round(
    x: Any,
    fmt: Any,
    rounding: str | Rounding = "nearest-even",
    *,
    seed: int | None = None,
    out: Any = None,
) -> Any:
    """Round to a format's values.

    Parameters
    ----------
    x : a Python number, a NumPy array or scalar (float16, float32, float64), or a torch tensor on the CPU (those and
        bfloat16), of any shape.
    fmt : what `get_system` takes.
    rounding : a mode or its name.
    seed : needed by "stochastic" and refused elsewhere. Element i of the result, in row-major order, draws from
        (seed, i) alone.
    out : an array or tensor of x's type, dtype and shape to write to; it may be x.

    Returns
    -------
    What x is, of the same type, dtype and shape. From float64 there is one rounding, never two. NaN stays NaN
    (also for a format without one, which `encode` then refuses); infinities stay, or become NaN or +-max_finite
    where the format has none or saturates; -0 stays unless the format has none. Overflow follows the mode
    (IEEE 754-2019, sections 4.3 and 7.4).

    Raises
    ------
    ValueError : unknown format or mode, a format of one significand bit to odd (no value of it is even), a dtype
        that cannot hold the format's values, a seed missing or without use, a process that flushes subnormals to zero.
    TypeError : integers, booleans and complex numbers in arrays, or another type.
    """
    target, mode = get_system(fmt), get_rounding(rounding)
    key = seed_key(mode, seed)
    target.require("round", mode)
    refuse_flush_to_zero()
    array, wrap = arguments.as_carrier(x, target.enclosing, "x")
    destination = None if out is None else arguments.out_array(out, x)
    if destination is not None and destination.dtype == array.dtype:
        if np.may_share_memory(array, destination) and array.ctypes.data != destination.ctypes.data:
            array = array.copy()
        target.round_into(array, destination, mode, key)
        return out
    result = np.empty(array.shape, array.dtype)
    target.round_into(array, result, mode, key)
    if destination is None:
        return wrap(result)
    destination[...] = result
    return out
