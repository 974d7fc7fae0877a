"""Sums, means and prefix sums of arrays, with any accumulator."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from fpsim.accumulation.kinds import TREE
from fpsim.accumulation.orders import sequential
from fpsim.arrays.products import require_countable, scalar_of
from fpsim.numbers.operands import as_array_like, operand
from fpsim.running.axes import mean_error, prefix_error, sum_error
from fpsim.sums.axes import mean_axes, sum_axes
from fpsim.sums.observers.counters import Counters
from fpsim.sums.prefixes import prefix_axis
from fpsim.sums.task import Sum, read_settings
from fpsim.theory.deviations import confidence_of


def sum(
    x: Any,
    axis: Any = None,
    *,
    keepdims: bool = False,
    fmt: Any,
    accumulate: Any = None,
    rounding: Any = "nearest-even",
    seed: int | None = None,
    error_bound: bool | float = False,
    counters: Counters | None = None,
) -> Any:
    """The sum along axes, accumulated as `accumulate` says and rounded once to `fmt`.

    Parameters
    ----------
    x : a NumPy array or scalar (float16, float32, float64), a torch tensor on the CPU, or a Python number; its elements
        are values of `fmt`.
    axis : an axis, several, or None for all. The terms are in row-major order of the axes in ascending order.
    keepdims : whether the axes stay, with size 1.
    accumulate : what `get_accumulator` takes; left out, "fp32". Each term is rounded to the accumulator's format first
        (with exact products it is not).
    rounding, seed : of every rounding; "stochastic" needs a seed.
    error_bound : True, or a probability, returns (result, bound of its error) as `matmul` does.
    counters : a `Counters`, to which what the roundings do is added, as by `matmul`.

    Returns
    -------
    What x is, of the same type and dtype. No terms give +0; NaN, and infinities of both signs, give NaN; the sum
    starts from +0, so that a sum of -0 alone is +0 (-0 under "down").

    Raises
    ------
    ValueError : an element that is no value of `fmt` (round it first), an axis out of range or given twice, a given tree
        with another number of leaves than there are terms, unknown names.
    TypeError : arrays of integers, booleans or complex numbers.
    """
    task, key = read_settings(fmt, accumulate, rounding, seed)
    return _reduced(x, axis, keepdims, task, key, error_bound, counters, sum_axes, sum_error)


def mean(
    x: Any,
    axis: Any = None,
    *,
    keepdims: bool = False,
    fmt: Any,
    accumulate: Any = None,
    rounding: Any = "nearest-even",
    seed: int | None = None,
    error_bound: bool | float = False,
    counters: Counters | None = None,
) -> Any:
    """The mean along axes: the accumulator divided by the number of terms, rounded in its format, then to `fmt`.

    As `sum` in everything else. With an exact accumulator the sum and the quotient are rounded to `fmt`. The mean of no
    terms is NaN.
    """
    task, key = read_settings(fmt, accumulate, rounding, seed)
    return _reduced(x, axis, keepdims, task, key, error_bound, counters, mean_axes, mean_error)


def _reduced(
    x: Any, axis: Any, keepdims: bool, task: Sum, key: int, error_bound: bool | float, counters: Counters | None,
    reduce: Callable[..., np.ndarray], error_of: Callable[..., np.ndarray],
) -> Any:  # fmt: skip
    """What `reduce` makes of x, and with error_bound what `error_of` says of that."""
    array, wrap = operand(x, task.operand, "x")
    axes = _axes(axis, array.ndim)
    require_countable(task.of_terms.accumulator, counters)
    result = reduce(task, array, axes, key, counters)
    bound = None if error_bound is False else error_of(task, array, axes, result, key, confidence_of(error_bound))
    return _delivered(wrap, result, bound, axes if keepdims else ())


def cumsum(
    x: Any, axis: int, *, fmt: Any, accumulate: Any = None, rounding: Any = "nearest-even", seed: int | None = None,
    error_bound: bool = False,
) -> Any:  # fmt: skip
    """The prefix sums along one axis: the states of the sequential chain, each rounded once to `fmt`.

    As `sum` in everything else; a bound of the errors has no probabilistic form. Raises ValueError for any other order or
    accumulator: their partial sums are no prefixes.
    """
    task, key = read_settings(fmt, accumulate, rounding, seed)
    chain = task.of_terms.accumulator
    if chain.kind is not TREE or chain.order != sequential:
        raise ValueError(
            f"accumulate = {str(task.accumulator)!r}: cumsum is the sequential chain, whose states are the prefixes; "
            "another order has none. Use a format alone, such as 'fp16' or 'fp32'"
        )
    array, wrap = operand(x, task.operand, "x")
    if axis is None:
        raise TypeError("axis must be an integer, got None")
    (place,) = _axes(axis, array.ndim)
    result = prefix_axis(task, array, place, key)
    if not isinstance(error_bound, bool):
        raise ValueError(f"error_bound is True or False for cumsum, got {error_bound!r}")
    bound = prefix_error(task, array, place, result) if error_bound else None
    return _delivered(wrap, result, bound, ())


def _axes(axis: Any, dimensions: int) -> tuple[int, ...]:
    """Distinct axes >= 0 in ascending order."""
    if axis is None:
        return tuple(range(dimensions))
    axes_found = []
    for number in axis if isinstance(axis, (tuple, list)) else (axis,):
        try:
            index = operator.index(number)
        except TypeError:
            raise TypeError(f"axis must be an integer, several or None, got {axis!r}") from None
        if not -dimensions <= index < dimensions:
            raise ValueError(f"axis {index} is out of range for {dimensions} axes")
        axes_found.append(index % dimensions)
    if len(set(axes_found)) < len(axes_found):
        raise ValueError(f"axis {axis!r} names an axis twice")
    return tuple(sorted(axes_found))


def _delivered(wrap: Any, result: np.ndarray, bound: np.ndarray | None, axes: tuple[int, ...]) -> Any:
    """The result as the operand's type with the axes restored, and its bound if there is one."""
    full = np.expand_dims(result, axes)
    wrapped = wrap(np.ascontiguousarray(full).reshape(full.shape))
    if bound is None:
        return scalar_of(wrapped)
    return scalar_of(wrapped), scalar_of(as_array_like(wrapped, np.expand_dims(bound, axes)))
