"""Running error analysis: bounds of the errors of sums that were made, from their own partial sums.

The error of a sum is the sum of the errors that its roundings made, each at most u * ufp(what was rounded) to nearest and
2u * ufp in every other mode (Wilkinson's running error analysis; in this form Rump, BIT 52, 2012). What has no partial sums
to look at ("native") is bounded by its a-priori bound and the terms' magnitudes.

A bound is infinite where anything overflowed, became NaN, or reached the largest value of its format, and so may have
saturated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np

from fpsim.accumulation.kinds import EXACT, KAHAN, NATIVE, NEUMAIER, PARTS, TREE, UNIT, Kind
from fpsim.numbers.computing import is_float32, is_float64
from fpsim.numbers.formats import FP32, Format
from fpsim.running.compensated import compensated_error
from fpsim.running.roundings import entry_error, stored_error, unless_overflowed, unread_error, unrounded_error
from fpsim.running.units import unit_error
from fpsim.sums.additions import add_rounded
from fpsim.sums.observers.error_sums import ErrorSum, Kept, error_sums, error_sums_of_stack
from fpsim.sums.parts import chained
from fpsim.sums.plan import plan
from fpsim.sums.task import Draws, Sum
from fpsim.theory.accumulations import AccumulationBound, accumulation_bound
from fpsim.theory.deviations import deviation, require_zero_mean
from fpsim.theory.powers import inflated, magnitudes, ufp
from fpsim.theory.roundings import holds, multiples, underflow_error, unit
from fpsim.theory.trees import leaves_of
from fpsim.theory.upward import to_float


@dataclass(frozen=True)
class Summed:
    """What was summed: a @ b (or, not `products`, the rows of a times ones).

    a and b are matrices or, where nothing is drawn, stacks of as many. `confidence` is the probability with which a bound
    shall hold, None for always.
    """

    task: Sum
    a: np.ndarray
    b: np.ndarray
    draws: Draws = Draws()  # noqa: RUF009 - a constant
    products: bool = True
    confidence: float | None = None

    def __post_init__(self) -> None:
        if self.task.split is not None:
            raise ValueError(f"there are no error bounds for products in parts, as {self.task.split}'s")

    @property
    def terms(self) -> int:
        return self.a.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.a.shape[:-1], self.b.shape[-1])

    @property
    def result(self) -> Format:
        """The format of the result; ValueError for another number system."""
        if not isinstance(self.task.result, Format):
            self.task.result.require("bound")
        return self.task.result  # type: ignore[return-value]

    @property
    def held(self) -> Format | None:
        """The format of the accumulated sum; None while it is exact. The library's own is taken for fp32's."""
        accumulator = self.task.accumulator
        return FP32 if accumulator.kind is NATIVE else accumulator.held


def result_error(
    sums: Summed, result: np.ndarray, addend: np.ndarray | None = None, stored: Format | None = None
) -> np.ndarray:
    """A bound of |result - (exact a @ b + addend)|, `result` being what the emulation made of it; float64.

    The result is rounded to `stored`; left out, to the operands' format. Operands are taken as they are: those that a unit or a
    format counts as zeros are an error too.
    """
    held, fmt, rounding = sums.held, sums.task.operand, sums.task.rounding
    target = sums.result if stored is None else stored
    starts = sums.task.accumulator.kind is UNIT  # a unit's sum starts from the addend
    total = accumulated_error(sums, addend if starts else None)
    if addend is not None:
        total = total + unread_error(addend, sums.task.operand)
    if addend is not None and held is not None and not starts:
        if not holds(held, fmt):
            total += entry_error(addend, held, rounding)
        total += unrounded_error(result, held, target, rounding)
        total = unless_overflowed(total, result, held, rounding)
    total += stored_error(result, held, target, rounding)
    return inflated(total, 4)


def accumulated_error(sums: Summed, start: np.ndarray | None = None) -> np.ndarray:
    """A bound of the error of the accumulated sum, before its last rounding; `start` is what a unit's sum starts from."""
    if sums.confidence is not None:
        require_zero_mean(sums.task.rounding)
    sums, dropped = _without_dropped_operands(sums)
    kind = sums.task.accumulator.kind
    if sums.terms == 0 and kind is not UNIT:
        error = np.zeros(sums.shape)
    elif sums.a.ndim == 2 or kind in _TAKES_STACKS:
        error = _ERRORS[kind](sums, start)
    else:
        error = np.empty(sums.shape)
        for place in np.ndindex(sums.shape[:-2]):
            one = replace(sums, a=sums.a[place], b=sums.b[place])
            error[place] = _ERRORS[kind](one, None if start is None else start[place])
    return error if dropped is None else inflated(error + dropped, 2)


def _without_dropped_operands(sums: Summed) -> tuple[Summed, np.ndarray | None]:
    """The operands with those replaced that count as zeros, and what that changes at most (None: nothing)."""
    bound = _a_priori(sums)
    if not bound.zero_below:
        return sums, None
    a, b = (np.where(np.abs(x) < bound.zero_below, 0, x) for x in (sums.a, sums.b))
    if np.array_equal(a, sums.a, equal_nan=True) and np.array_equal(b, sums.b, equal_nan=True):
        return sums, None
    lost = magnitudes(sums.a - a, sums.b) + magnitudes(a, sums.b - b)
    return replace(sums, a=a, b=b), lost


def _a_priori(sums: Summed) -> AccumulationBound:
    task = sums.task
    return accumulation_bound(task.operand, task.accumulator, sums.terms, task.rounding, products=sums.products)


def _exact_error(sums: Summed, start: np.ndarray | None) -> np.ndarray:
    return np.zeros(sums.shape)


def _native_error(sums: Summed, start: np.ndarray | None) -> np.ndarray:
    return np.asarray(_a_priori(sums).error_without_overflow(magnitudes(sums.a, sums.b)))


def _compensated_error(sums: Summed, start: np.ndarray | None) -> np.ndarray:
    task = sums.task
    if is_float64(task.target):
        return _native_error(sums, start)
    exact = leaves_of(task.operand, task.target, True, sums.products).exact
    return compensated_error(task, sums.a, sums.b, sums.draws, exact)


def _unit_error(sums: Summed, start: np.ndarray | None) -> np.ndarray:
    return unit_error(sums.a, sums.b, sums.task.operand, sums.task.accumulator, start)


@dataclass(frozen=True)
class Stage:
    """What the roundings to one format add up to, for each element: `kept` powers of two (or their squares), times `factor`."""

    fmt: Format
    kept: np.ndarray
    factor: float


def _tree_error(sums: Summed, start: np.ndarray | None) -> np.ndarray:
    stages, count, certain = tree_stages(sums)
    if sums.confidence is not None:
        parts = [(stage.fmt, inflated(stage.kept, count, stage.factor)) for stage in stages]
        return deviation(parts, sums.task.rounding, count, sums.confidence) + certain
    error = sum(inflated(stage.kept, count, stage.factor * float(unit(stage.fmt, sums.task.rounding))) for stage in stages)
    return np.asarray(error + certain if certain else error)


def tree_stages(sums: Summed) -> tuple[list[Stage], int, float]:
    """Trees in one format or, promoted, blocks in one and their sums in another: the stages, how many roundings there are at
    most, and what the sums of powers do not show."""
    task, rounding = sums.task, sums.task.rounding
    held, wide = task.target, task.accumulator.promoted
    leaves = leaves_of(task.operand, held, not task.exact_products, sums.products)
    planned, kept = plan(task, sums.terms), Kept(sums.confidence is not None, leaves.exact)
    stack = None
    if sums.a.ndim > 2 and wide is None:
        stack = error_sums_of_stack(task, _in_line(sums.a), _in_line(sums.b), kept)
    if stack is None and sums.a.ndim == 2 and wide is None:
        (stack,) = error_sums(task, sums.a, sums.b, sums.draws, kept)
    if stack is not None:
        narrow_sum, excess = stack.kept.reshape(sums.shape), stack.excess
    else:
        narrow_sum, wide_sum, excess = np.zeros(sums.shape), np.zeros(sums.shape), 0.0
        for place in np.ndindex(sums.shape[:-2]):
            parts = error_sums(task, sums.a[place], sums.b[place], sums.draws, kept)
            with np.errstate(over="ignore"):
                excess = max(excess, _kept(sums, planned.programs, parts, narrow_sum[place], wide_sum[place]))
    # At most as many roundings, and additions of what they cost.
    after_parts = 0 if wide is None else len(planned.programs) * (1 + task.accumulator.rounds_parts)
    count = sums.terms * (not leaves.exact) + (planned.tree.nodes if wide is None else sums.terms + after_parts) + 1
    stages = [Stage(held, narrow_sum, 1 + 2 * excess)]
    if wide is not None:
        stages.append(Stage(wide, wide_sum, 1.0))
    certain = count * hidden_underflow(sums, held)
    if wide is not None and (wide.flush or task.accumulator.rounds_parts):
        certain += len(planned.programs) * to_float(underflow_error(wide, rounding))
    return stages, count, certain


def _in_line(x: np.ndarray) -> np.ndarray:
    """Matrices of a stack one after the other."""
    return x.reshape(-1, *x.shape[-2:])


def _kept(
    sums: Summed, programs: list[np.ndarray], parts: Iterator[ErrorSum], narrow_sum: np.ndarray, wide_sum: np.ndarray
) -> float:
    """Add what the roundings of one matrix cost to the sums; returns the relative error of what was added."""
    wide, excess, total = sums.task.accumulator.promoted, 0.0, np.zeros(narrow_sum.shape)
    for lines, part in zip(programs, parts, strict=True):
        narrow_sum += part.kept
        excess = max(excess, part.excess)
        if wide is not None:

            def added(x: np.ndarray, y: np.ndarray, target: Format, *how: Any) -> np.ndarray:
                result = add_rounded(x, y, target, *how)
                power = np.where(np.abs(result) < target.max_finite, ufp(result), inf)
                np.add(wide_sum, power * power if sums.confidence is not None else power, out=wide_sum)
                return result

            total = chained(total, part.product, sums.task, sums.draws, lines, added)
    return excess


def hidden_underflow(sums: Summed, held: Format) -> float:
    """What one rounding may lose beside u * ufp of its result: by flushing, or where the carrier shows no underflow."""
    operand = sums.task.operand
    hidden = held.flush or (not multiples(held, operand, sums.products) and (is_float32(held) or is_float64(held)))
    return to_float(underflow_error(held, sums.task.rounding)) if hidden else 0.0


#: For each kind of accumulator a bound of the error of its sums.
_ERRORS: dict[Kind, Callable[[Summed, np.ndarray | None], np.ndarray]] = {
    TREE: _tree_error,
    PARTS: _tree_error,
    KAHAN: _compensated_error,
    NEUMAIER: _compensated_error,
    EXACT: _exact_error,
    NATIVE: _native_error,
    UNIT: _unit_error,
}
_TAKES_STACKS = (TREE, PARTS, EXACT)
