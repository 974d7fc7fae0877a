"""Running error bounds of sums, means and prefix sums of arrays."""

from __future__ import annotations

import numpy as np

from fpsim.numbers.names import get_float_format
from fpsim.running.products import Summed, accumulated_error, result_error
from fpsim.running.roundings import entry_error, stored_error, unless_overflowed, unread_error, unrounded_error
from fpsim.sums.axes import as_product, axes_kept, sum_axes
from fpsim.sums.task import Draws, Sum
from fpsim.theory.powers import inflated
from fpsim.theory.roundings import holds


def sum_error(
    task: Sum, x: np.ndarray, axes: tuple[int, ...], result: np.ndarray, key: int, confidence: float | None
) -> np.ndarray:
    """A bound of the error of `result`, the sum of x over the axes."""
    sums = _summed(task, x, axes, key, confidence)
    return result_error(sums, np.asarray(result, np.float64).reshape(-1, 1)).reshape(result.shape)


def mean_error(
    task: Sum, x: np.ndarray, axes: tuple[int, ...], result: np.ndarray, key: int, confidence: float | None
) -> np.ndarray:
    """A bound of the error of `result`, the mean of x over the axes."""
    sums = _summed(task, x, axes, key, confidence)
    count, fmt, rounding = sums.terms, sums.result, task.rounding
    flat = np.asarray(result, np.float64).reshape(-1, 1)
    if sums.task.accumulator.kind.stands_alone:  # the mean was made of a rounded sum
        total = sum_axes(task, x, axes, key)
        held, error = fmt, result_error(sums, np.asarray(total, np.float64).reshape(-1, 1))
    else:
        assert sums.held is not None
        held, error = sums.held, accumulated_error(sums)
    if count == 0:
        return np.full(result.shape, np.inf)
    with np.errstate(invalid="ignore"):
        error = inflated(error / count, 4)
    error = error + unrounded_error(flat, held, fmt, rounding) + stored_error(flat, held, fmt, rounding)
    error = unless_overflowed(error, flat, held, rounding)
    return inflated(error, 4).reshape(result.shape)


def prefix_error(task: Sum, x: np.ndarray, axis: int, result: np.ndarray) -> np.ndarray:
    """A bound of the error of `result`, the prefix sums of x along an axis; inf from an overflow on.

    The chain's states are seen through their last rounding, which does not lower ufp.
    """
    held, fmt, rounding = task.of_terms.target, get_float_format(task.result, "bound"), task.rounding
    terms, sums = (np.asarray(np.moveaxis(array, axis, 0), np.float64) for array in (x, result))
    cost = unrounded_error(sums, held, fmt, rounding)
    cost = unless_overflowed(unless_overflowed(cost, sums, fmt, rounding), sums, held, rounding)
    if not holds(held, fmt):
        cost = cost + entry_error(terms, held, rounding)
    cost = cost + unread_error(terms, fmt)
    with np.errstate(over="ignore"):
        total = inflated(np.cumsum(cost, axis=0), 2 * len(terms)) + stored_error(sums, held, fmt, rounding)
    return np.moveaxis(inflated(total, 4), 0, axis)


def _summed(task: Sum, x: np.ndarray, axes: tuple[int, ...], key: int, confidence: float | None) -> Summed:
    """The sums as products with ones, one row each; their draws are numbered as the products' own."""
    lines, ones = as_product(x, axes_kept(x, axes)[0], axes)
    return Summed(task.of_terms, lines, ones, Draws(key, 0, 1, 1), False, confidence)
