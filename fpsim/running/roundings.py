"""Errors of single roundings of numbers that were made, from their results."""

from __future__ import annotations

from math import inf

import numpy as np

from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding
from fpsim.theory.powers import ufp
from fpsim.theory.roundings import NEAREST, holds, underflow_error, unit
from fpsim.theory.upward import to_float


def stored_error(result: np.ndarray, held: Format | None, fmt: Format, rounding: Rounding) -> np.ndarray:
    """The error of the last rounding, from `held` (None: any real number) to `fmt`; inf where it may have overflowed."""
    exact = held is not None and holds(fmt, held)
    error = np.zeros(result.shape) if exact else rounded_error(result, fmt, rounding)
    return unless_overflowed(error, result, fmt, rounding)


def unless_overflowed(error: np.ndarray, x: np.ndarray, fmt: Format, rounding: Rounding) -> np.ndarray:
    """The error; inf where x, values that were rounded to `fmt`, may be what overflow left.

    So may the largest value, but where it is never rounded down to from more than half an ulp above.
    """
    inward = fmt.saturate or rounding not in NEAREST
    largest = max(x.max(initial=0.0), -x.min(initial=0.0))  # NaN if there is one
    if largest < fmt.max_finite or (not inward and largest == fmt.max_finite):
        return error
    with np.errstate(invalid="ignore"):
        size = np.abs(x)
        return np.where(size < fmt.max_finite if inward else size <= fmt.max_finite, error, inf)


def rounded_error(result: np.ndarray, fmt: Format, rounding: Rounding) -> np.ndarray:
    """The error of what was rounded to `fmt`, given the result."""
    return unrounded_error(result, fmt, fmt, rounding)


def unread_error(x: np.ndarray, fmt: Format) -> np.ndarray:
    """What counts as a zero of operands that a format reads: the error of taking it for one."""
    return np.where((np.abs(x) < fmt.min_normal) & fmt.flush_inputs, np.abs(x), 0.0)


def entry_error(x: np.ndarray, held: Format, rounding: Rounding) -> np.ndarray:
    """The error of rounding x to an accumulator's format, given x itself; inf beyond its largest value."""
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(x) <= held.max_finite, rounded_error(x, held, rounding), inf)


def unrounded_error(result: np.ndarray, held: Format, fmt: Format, rounding: Rounding) -> np.ndarray:
    """The error of what was rounded to `held` and then to `fmt`, in the first rounding, given the last result.

    Rounding to a neighbor never crosses a power of two that `fmt` has: ufp of the last result is no smaller.
    """
    flushed = to_float(underflow_error(held, rounding)) if held.flush else 0.0
    # The product is exact, both being powers of two, but for what underflows.
    return float(unit(held, rounding)) * ufp(result, max(fmt.min_normal, held.min_normal)) + flushed
