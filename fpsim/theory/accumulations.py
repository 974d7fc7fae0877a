"""What an accumulator may do to a sum, before any data are known.

    accumulation_bound("fp16", "fp16:pairwise", 1024)     for 1024 products of fp16 values, summed pairwise in fp16

gives `relative`, `absolute` and `largest` with

    |accumulated - exact sum| <= relative * T + absolute,    T = sum |a_i b_i| + sum |addends|

whatever the data, as long as nothing overflows or saturates; T <= largest is enough for that. The accumulated value is a
value of `format`; its last rounding, to the format of the result, is `rounding_bound(fmt, rounding, held=bound.format)`:

    |result - exact sum| <= relative * T + absolute + store.error(accumulated)

All numbers are rounded outward. `inf` says that no bound is known. Trees, compensated and exact sums and units compose
from the same stages (`trees.py`, `compensated.py`, `units.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from fpsim.accumulation.accumulator import Accumulator, get_accumulator
from fpsim.accumulation.kinds import EXACT, KAHAN, NATIVE, NEUMAIER, PARTS, TREE, UNIT, Kind
from fpsim.accumulation.orders import parts_of, sequential
from fpsim.accumulation.program import MAX_LEAVES
from fpsim.numbers.formats import FP32, Format, get_format
from fpsim.numbers.modes import Rounding, get_rounding
from fpsim.theory.compensated import kahan_stage, neumaier_stage
from fpsim.theory.roundings import holds, relative_error, underflow_error
from fpsim.theory.trees import Leaves, Stage, chain_stage, leaf_stage, leaves_of, once, tree_stage
from fpsim.theory.units import UnitSum, flushed_below, split_stage, unit_stage
from fpsim.theory.upward import ZERO, affine, grown, largest_total, to_float


@dataclass(frozen=True)
class AccumulationBound:
    """|accumulated - exact sum| <= relative * T + absolute, T the sum of the terms' (and addends') magnitudes.

    relative, absolute   rounded upward; inf where no bound is known
    largest              T <= largest guarantees that nothing overflows, saturates or becomes infinite
    format               whose values are accumulated; None where the sum is exact until it is stored ("exact")
    zero_below           operands (and a unit's addend) of smaller magnitude count as zeros in the exact sum and in T; or 0
    """

    relative: float
    absolute: float
    largest: float
    format: Format | None
    zero_below: float = 0.0

    def error(self, magnitudes: Any) -> Any:
        """relative * magnitudes + absolute, rounded upward, elementwise; inf where magnitudes > largest and for NaN.

        `magnitudes` are upper bounds of T. Whoever knows otherwise that nothing overflowed uses `error_without_overflow`.
        """
        return affine(self.relative, self.absolute, magnitudes, self.largest)

    def error_without_overflow(self, magnitudes: Any) -> Any:
        """The same where the caller vouches that nothing overflowed or saturated."""
        return affine(self.relative, self.absolute, magnitudes)


def accumulation_bound(
    fmt: Any,
    accumulate: Any = None,
    terms: int = 1,
    rounding: Any = "nearest-even",
    *,
    products: bool = True,
    addends: int = 0,
    operand_largest: float | None = None,
) -> AccumulationBound:
    """The bound for sums of `terms` products of two values of `fmt`, accumulated as `fpsim.matmul` does.

    Parameters
    ----------
    fmt, accumulate, rounding : as `fpsim.matmul` takes them.
    terms : the number of products, k.
    products : False for sums of values of `fmt` themselves, as `fpsim.sum` adds them.
    addends : how many values of `fmt` are added to the accumulator after the sum (`addend`, a bias): their magnitudes
        belong to T.
    operand_largest : no operand exceeds it in magnitude; left out, the format's largest value. Only units with alignment use
        it: a subnormal operand aligns as the smallest normal number, whose product with another then sets what is cut off.

    "native" is any order of additions and fused multiply-adds in fp32 or wider, without products of fewer
    multiplications (Strassen, Winograd) and without flushing.

    Raises
    ------
    ValueError : unknown names, operands that a unit does not take, a given tree with another number of leaves.
    """
    target, accumulator, mode = get_format(fmt), get_accumulator(accumulate), get_rounding(rounding)
    if not isinstance(terms, int | np.integer) or not 0 <= terms <= MAX_LEAVES or addends < 0:
        raise ValueError(f"terms must be a whole number from 0 to {MAX_LEAVES} and addends at least 0, got {terms}, {addends}")
    if not target.has_zero:
        raise ValueError(f"{target.name} has no zero and no arithmetic")
    largest = target.max_finite if operand_largest is None else float(operand_largest)
    return _bound(target, accumulator, int(terms), mode, products, int(addends), largest)


@lru_cache(maxsize=1024)
def _bound(
    fmt: Format, accumulator: Accumulator, terms: int, rounding: Rounding, products: bool, addends: int, largest: float
) -> AccumulationBound:
    zero_below = fmt.min_normal if fmt.flush_inputs else 0.0
    if not products:
        accumulator = accumulator.for_sums
    if accumulator.kind is EXACT:
        return AccumulationBound(0.0, 0.0, fmt.max_finite, None, zero_below)
    held = accumulator.promoted or accumulator.format
    terms_of = _Terms(fmt, accumulator, terms, rounding, products, largest)
    stage, inside = _STAGES[accumulator.kind](terms_of)
    if accumulator.unit is not None:
        zero_below = max(zero_below, flushed_below(accumulator.unit.instruction(fmt, accumulator.format.name), fmt))
    if addends > inside:
        stage = stage.then(_addends(fmt, held, addends - inside, rounding))
    top = largest_total(stage.top, stage.relative, stage.absolute)
    return AccumulationBound(to_float(stage.relative), to_float(stage.absolute), top, held, zero_below)


@dataclass(frozen=True)
class _Terms:
    """What is summed: so many products of values of the format (or values themselves), none larger."""

    fmt: Format
    accumulator: Accumulator
    count: int
    rounding: Rounding
    products: bool
    largest: float

    @property
    def leaves(self) -> Leaves:
        return leaves_of(self.fmt, self.accumulator.format, self.accumulator.rounds_products, self.products)

    @property
    def leaf_stage(self) -> Stage:
        """The roundings of the leaves."""
        return leaf_stage(self.leaves, self.fmt, self.accumulator.format, self.rounding, self.count, self.products)


def _native(terms: _Terms) -> tuple[Stage, int]:
    """Whatever the order, no product meets more than as many roundings as terms, its own included; float64 rounds once more."""
    relative = grown(relative_error(FP32, terms.rounding), terms.count + 1)
    absolute = (terms.count + 1) * underflow_error(FP32, terms.rounding) * (1 + relative)
    return Stage(relative, absolute, FP32.max_finite), 0


def _tree(terms: _Terms) -> tuple[Stage, int]:
    held = terms.accumulator.format
    return terms.leaf_stage.then(tree_stage(terms.accumulator.order(terms.count), held, terms.rounding, terms.leaves)), 0


def _parts(terms: _Terms) -> tuple[Stage, int]:
    second, held = terms.accumulator.promoted, terms.accumulator.format
    assert second is not None
    sizes = [count for _, count, _ in parts_of(terms.accumulator.order, terms.count)]
    longest = tree_stage(sequential(max(sizes, default=0)), held, terms.rounding, terms.leaves)
    stage = terms.leaf_stage.then(Stage(longest.relative, len(sizes) * longest.absolute, longest.top))
    if terms.accumulator.rounds_parts:
        stage = stage.then(once(second, terms.rounding, count=len(sizes)))
    return stage.then(chain_stage(len(sizes), second, terms.rounding)), 0


def _compensated(terms: _Terms) -> tuple[Stage, int]:
    stage = kahan_stage if terms.accumulator.kind is KAHAN else neumaier_stage
    return terms.leaf_stage.then(stage(terms.count, terms.accumulator.format, terms.rounding)), 0


def _unit(terms: _Terms) -> tuple[Stage, int]:
    accumulator, held = terms.accumulator, terms.accumulator.format
    assert accumulator.unit is not None
    row = accumulator.unit.instruction(terms.fmt, held.name)
    sums, output = UnitSum(terms.fmt, terms.count, Fraction(terms.largest)), row.outputs[held.name]
    if accumulator.order == sequential:
        return unit_stage(sums, row, output), 1  # its sum starts from the first addend
    return split_stage(sums, row, output, held, accumulator.order.parameters[0]), 0


#: For each kind of accumulator the stage that its sums are, and how many addends are terms of it.
_STAGES: dict[Kind, Callable[[_Terms], tuple[Stage, int]]] = {
    TREE: _tree,
    PARTS: _parts,
    KAHAN: _compensated,
    NEUMAIER: _compensated,
    NATIVE: _native,
    UNIT: _unit,
}


def _addends(fmt: Format, held: Format, count: int, rounding: Rounding) -> Stage:
    """Values of `fmt`, rounded to the accumulator's format and added to it one after the other."""
    leaf = Stage(ZERO, ZERO, held.max_finite)
    if not holds(held, fmt):
        leaf = once(held, rounding, count=count)
    return leaf.then(chain_stage(count + 1, held, rounding))
