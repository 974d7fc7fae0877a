"""Running error analysis: bounds of the errors of sums that were made, from their own partial sums.

The error of a sum is the sum of the errors that its roundings made, each at most u * ufp(what was rounded) to nearest and
2u * ufp in every other mode (Wilkinson's running error analysis; in this form Rump, BIT 52, 2012). What has no partial sums
to look at ("native") is bounded by its a-priori bound and the terms' magnitudes.

A bound is infinite where anything overflowed, became NaN, or reached the largest value of its format, and so may have
saturated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf

import numpy as np

from fpsim.accumulation.accumulator import Accumulator
from fpsim.accumulation.orders import sequential
from fpsim.numbers.formats import FP32, FP64, Format
from fpsim.numbers.rounding import Rounding
from fpsim.running.compensated import compensated_error
from fpsim.running.units import unit_error
from fpsim.sums.observers.error_sums import Watched, watched_products, watched_stack
from fpsim.sums.plan import is_like, program
from fpsim.sums.tiles import Draws, add_rounded
from fpsim.sums.trees import promoted_programs
from fpsim.theory.accumulations import accumulation_bound
from fpsim.theory.deviations import deviation, require_zero_mean
from fpsim.theory.powers import inflated, magnitudes, ufp
from fpsim.theory.roundings import NEAREST, holds, multiples, quantum, underflow_error, unit
from fpsim.theory.trees import leaves_of
from fpsim.theory.upward import to_float


@dataclass(frozen=True)
class Sums:
    """What was summed and how: a @ b (or, not `products`, the rows of a times ones) of values of `fmt`.

    a and b are matrices or, where nothing is drawn, stacks of as many. `confidence` is the probability with which a bound
    shall hold, None for always.
    """

    a: np.ndarray
    b: np.ndarray
    fmt: Format
    accumulator: Accumulator
    rounding: Rounding
    draws: Draws
    products: bool = True
    confidence: float | None = None

    @property
    def terms(self) -> int:
        return self.a.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.a.shape[:-1], self.b.shape[-1])

    @property
    def held(self) -> Format | None:
        """The format of the accumulated sum; None while it is exact."""
        if self.accumulator.kind == "exact":
            return None
        return FP32 if self.accumulator.kind == "native" else self.accumulator.promoted or self.accumulator.format


def result_error(
    sums: Sums, result: np.ndarray, addend: np.ndarray | None = None, stored: Format | None = None
) -> np.ndarray:
    """A bound of |result - (exact a @ b + addend)|, `result` being what the emulation made of it; float64.

    The result is rounded to `stored`; left out, to the operands' format. Operands are taken as they are: those that a unit or a
    format counts as zeros are an error too.
    """
    held, fmt, rounding = sums.held, sums.fmt, sums.rounding
    target = fmt if stored is None else stored
    starts = sums.accumulator.kind == "unit"  # a unit's sum starts from the addend
    total = accumulated_error(sums, addend if starts else None)
    if addend is not None and fmt.flush_inputs:
        total = total + unread_error(addend, fmt)
    if addend is not None and held is not None and not starts:
        if not holds(held, fmt):
            total += entry_error(addend, held, rounding)
        total += unrounded_error(result, held, target, rounding)
        total = unless_overflowed(total, result, held, rounding)
    total += stored_error(result, held, target, rounding)
    return inflated(total, 4)


def accumulated_error(sums: Sums, start: np.ndarray | None = None) -> np.ndarray:
    """A bound of the error of the accumulated sum, before its last rounding; `start` is what a unit's sum starts from."""
    if sums.confidence is not None:
        require_zero_mean(sums.rounding)
    sums, dropped = _without_dropped_operands(sums)
    kind = sums.accumulator.kind
    if kind == "exact" or (sums.terms == 0 and kind != "unit"):
        error = np.zeros(sums.shape)
    elif kind == "tree":
        error = _tree_error(sums)
    elif sums.a.ndim > 2:
        error = np.empty(sums.shape)
        for place in np.ndindex(sums.shape[:-2]):
            one = replace(sums, a=sums.a[place], b=sums.b[place])
            error[place] = _one_error(one, None if start is None else start[place])
    else:
        error = _one_error(sums, start)
    return error if dropped is None else inflated(error + dropped, 2)


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
    flushed = to_float(underflow_error(fmt, rounding)) if fmt.flush else 0.0
    return _cost(unit(fmt, rounding), ufp(result, fmt.min_normal)) + flushed


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
    return _cost(unit(held, rounding), ufp(result, max(fmt.min_normal, held.min_normal))) + flushed


def _cost(relative: Fraction, powers: np.ndarray) -> np.ndarray:
    return float(relative) * powers  # exact, both being powers of two, but for what underflows


def _without_dropped_operands(sums: Sums) -> tuple[Sums, np.ndarray | None]:
    """The operands with those replaced that count as zeros, and what that changes at most (None: nothing)."""
    bound = accumulation_bound(sums.fmt, sums.accumulator, sums.terms, sums.rounding, products=sums.products)
    if not bound.zero_below:
        return sums, None
    a, b = (np.where(np.abs(x) < bound.zero_below, 0, x) for x in (sums.a, sums.b))
    if np.array_equal(a, sums.a, equal_nan=True) and np.array_equal(b, sums.b, equal_nan=True):
        return sums, None
    lost = magnitudes(sums.a - a, sums.b) + magnitudes(a, sums.b - b)
    return replace(sums, a=a, b=b), lost


def _one_error(sums: Sums, start: np.ndarray | None) -> np.ndarray:
    """The error of one matrix that is neither exact nor made by a tree."""
    kind, held = sums.accumulator.kind, sums.accumulator.format
    if kind == "unit":
        return unit_error(sums.a, sums.b, sums.fmt, sums.accumulator, start)
    if kind == "native" or is_like(held, FP64):
        bound = accumulation_bound(sums.fmt, sums.accumulator, sums.terms, sums.rounding, products=sums.products)
        return np.asarray(bound.error_without_overflow(magnitudes(sums.a, sums.b)))
    exact = leaves_of(sums.fmt, held, True, sums.products).exact
    return compensated_error(sums.a, sums.b, held, sums.rounding, kind, sums.draws, exact)


@dataclass(frozen=True)
class Stage:
    """What the roundings to one format add up to, for each element: `kept` powers of two (or their squares), times `factor`."""

    fmt: Format
    kept: np.ndarray
    factor: float


def _tree_error(sums: Sums) -> np.ndarray:
    stages, count, certain = tree_stages(sums)
    if sums.confidence is not None:
        parts = [(stage.fmt, inflated(stage.kept, count, stage.factor)) for stage in stages]
        return deviation(parts, sums.rounding, count, sums.confidence) + certain
    error = sum(inflated(stage.kept, count, stage.factor * float(unit(stage.fmt, sums.rounding))) for stage in stages)
    return np.asarray(error + certain if certain else error)


def tree_stages(sums: Sums) -> tuple[list[Stage], int, float]:
    """Trees in one format or, promoted, blocks in one and their sums in another: the stages, how many roundings there are at
    most, and what the sums of powers do not show."""
    accumulator, rounding = sums.accumulator, sums.rounding
    held, wide = accumulator.format, accumulator.promoted
    leaves = leaves_of(sums.fmt, held, accumulator.products == "rounded", sums.products)
    if wide is None:
        tree = accumulator.order(sums.terms)
        programs = [program(tree)]
    else:
        tree = sequential(sums.terms)
        programs = promoted_programs(sums.terms, accumulator.order.parameters[0])
    squares = sums.confidence is not None
    how = (sums.fmt, held, rounding, tree, accumulator.products != "rounded", leaves.exact, squares)
    stack = None
    if sums.a.ndim > 2 and wide is None:
        stack = watched_stack(_in_line(sums.a), _in_line(sums.b), *how, programs[0])
    if stack is None and sums.a.ndim == 2 and wide is None:
        (stack,) = watched_products(sums.a, sums.b, *how, sums.draws, programs)
    if stack is not None:
        narrow_sum, excess = stack.kept.reshape(sums.shape), stack.excess
    else:
        narrow_sum, wide_sum, excess = np.zeros(sums.shape), np.zeros(sums.shape), 0.0
        for place in np.ndindex(sums.shape[:-2]):
            parts = watched_products(sums.a[place], sums.b[place], *how, sums.draws, programs)
            with np.errstate(over="ignore"):
                excess = max(excess, _kept(sums, programs, parts, narrow_sum[place], wide_sum[place]))
    # At most as many roundings, and additions of what they cost.
    count = sums.terms * (not leaves.exact) + (tree.nodes if wide is None else sums.terms + len(programs)) + 1
    stages = [Stage(held, narrow_sum, 1 + 2 * excess)]
    if wide is not None:
        stages.append(Stage(wide, wide_sum, 1.0))
    certain = count * hidden_underflow(sums, held)
    if wide is not None and wide.flush:
        certain += len(programs) * to_float(underflow_error(wide, rounding))
    return stages, count, certain


def _in_line(x: np.ndarray) -> np.ndarray:
    """Matrices of a stack one after the other."""
    return x.reshape(-1, *x.shape[-2:])


def _kept(
    sums: Sums, programs: list[np.ndarray], parts: Iterator[Watched], narrow_sum: np.ndarray, wide_sum: np.ndarray
) -> float:
    """Add what the roundings of one matrix cost to the sums; returns the relative error of what was added."""
    wide, excess, total = sums.accumulator.promoted, 0.0, np.zeros(narrow_sum.shape)
    for lines, part in zip(programs, parts, strict=True):
        narrow_sum += part.kept
        excess = max(excess, part.excess)
        if wide is not None:
            total = add_rounded(total, part.product, wide, sums.rounding, sums.draws, int(lines[1, 2] + lines[1, 4]))
            power = np.where(np.abs(total) < wide.max_finite, ufp(total), inf)
            wide_sum += power * power if sums.confidence is not None else power
    return excess


def hidden_underflow(sums: Sums, held: Format) -> float:
    """What one rounding may lose beside u * ufp of its result: by flushing, or where the carrier shows no underflow."""
    fits = multiples(held, sums.fmt) if sums.products else quantum(sums.fmt) >= quantum(held)
    hidden = held.flush or (not fits and (is_like(held, FP32) or is_like(held, FP64)))
    return to_float(underflow_error(held, sums.rounding)) if hidden else 0.0
