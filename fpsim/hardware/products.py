"""Products of matrices as a unit leaves them in its registers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.accumulation.accumulator import get_accumulator
from fpsim.backend.subnormals import refuse_flush_to_zero
from fpsim.numbers.formats import get_format
from fpsim.numbers.operands import operand
from fpsim.sums.units.products import unit_product


def product(a: Any, b: Any, *, unit: str, fmt: Any, addend: Any = None) -> np.ndarray:
    """addend + a @ b through a unit, as a float32 array of values of the unit's output format.

    Parameters
    ----------
    a, b : (m, k) and (k, n) arrays or tensors on the CPU of values of `fmt`.
    fmt : a format, or a pair of them, of a and of b, where one of the unit's instructions takes both.
    unit : a unit as `accumulate` takes it, such as "h100" or "h100:fp16".
    addend : what the sum starts from, values of the output format that broadcast to (m, n); left out, +0.

    A product of zero and infinity, infinities of both signs and NaN give NaN (payloads unspecified); k = 0 gives the addend.

    Raises
    ------
    ValueError : an unknown unit, operands that it does not take (listing what it does), shapes that do not fit, an element
        that is no value of its format.
    """
    accumulator = get_accumulator(unit)
    if accumulator.unit is None:
        raise ValueError(f"unit = {unit!r} names no hardware unit; fpsim.hardware.UNITS lists them")
    refuse_flush_to_zero()
    first, second = map(get_format, fmt if isinstance(fmt, tuple) else (fmt, fmt))
    target = first if first == second else (first, second)
    accumulator.unit.instruction(target, accumulator.format.name)
    (left, _), (right, _) = operand(a, first, "a"), operand(b, second, "b")
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise ValueError(f"a and b must be (m, k) and (k, n), got {left.shape} and {right.shape}")
    start = None
    if addend is not None:
        start, _ = operand(addend, accumulator.format, "addend")
        try:
            start = np.broadcast_to(start, (left.shape[0], right.shape[1]))
        except ValueError:
            raise ValueError(f"addend {start.shape} does not broadcast to {(left.shape[0], right.shape[1])}") from None
    return unit_product(left, right, target, accumulator, start).astype(np.float32)
