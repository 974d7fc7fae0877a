"""Products of hardware units once more, block after block, with the error of every block bounded from its own terms."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import inf

import numpy as np

from fpsim.accumulation.accumulator import Accumulator
from fpsim.accumulation.instructions import Instruction, Output
from fpsim.accumulation.orders import sequential
from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding
from fpsim.sums.additions import add_rounded
from fpsim.sums.task import Draws
from fpsim.sums.units.products import unit_product
from fpsim.theory.powers import inflated, magnitudes, ufp
from fpsim.theory.roundings import unit
from fpsim.theory.units import UnitSum, unit_stage
from fpsim.theory.upward import to_float

_NEAREST = Rounding.NEAREST_EVEN
_CHAIN = 16  # terms of a chain that are bounded together


def unit_error(a: np.ndarray, b: np.ndarray, fmt: Format, accumulator: Accumulator, addend: np.ndarray | None) -> np.ndarray:
    """A bound of the error of addend + a @ b through a unit, in its output format.

    Parts of split(k) run from +0 each; they and then the addend are added to nearest.
    """
    start = np.zeros((a.shape[0], b.shape[1])) if addend is None else np.array(addend, np.float64)
    if accumulator.order == sequential:
        return _with_result(a, b, fmt, accumulator, start)[0]
    whole, held = replace(accumulator, order=sequential), accumulator.format
    count = max(1, min(accumulator.order.parameters[0], a.shape[1]))
    nothing = np.zeros(start.shape)
    total, cost, error = nothing, nothing, nothing
    for places in np.array_split(np.arange(a.shape[1]), count):
        block_error, part = _with_result(a[:, places], b[places], fmt, whole, nothing)
        total = add_rounded(total, part, held, _NEAREST, Draws(), 0)
        error, cost = error + block_error, cost + ufp(total)
    if addend is not None:
        cost = cost + ufp(add_rounded(total, start, held, _NEAREST, Draws(), 0))
    return inflated(error + float(unit(held, _NEAREST)) * cost, 2 * count + 4)


def _with_result(
    a: np.ndarray, b: np.ndarray, fmt: Format, accumulator: Accumulator, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The bound for start + a @ b block after block, and the sum."""
    assert accumulator.unit is not None
    row = accumulator.unit.instruction(fmt, accumulator.format.name)
    output = row.outputs[accumulator.format.name]
    step = _CHAIN if row.model == "chain" else row.block
    total = start
    bound = _AlignedBlocks(a, b, fmt, row, output) if row.model == "block" else _AnyBlocks(a, b, fmt, row, output, step)
    for first in range(0, a.shape[1], step):
        block = slice(first, first + step)
        new = unit_product(a[:, block], b[block], fmt, accumulator, total)
        bound.add(block, total, new)
        total = np.asarray(new, np.float64)
    with np.errstate(invalid="ignore"):
        overflowed = ~(np.abs(total) < accumulator.format.max_finite)
    return np.where(overflowed, inf, bound.error()), total


class _AlignedBlocks:
    """Tensor cores: what alignment cuts off, from the exponents of each block, and the rounding of its sum."""

    def __init__(self, a: np.ndarray, b: np.ndarray, fmt: Format, row: Instruction, output: Output):
        self.exponents = [_exponents(x, fmt.emin) for x in (a, b)]
        self.lost = (row.block + 1) * 2.0**-row.fraction
        self.least = output.format.min_normal
        self.unit = float(unit(output.format, Rounding(output.rounding)))
        self.cost, self.count = np.zeros((a.shape[0], b.shape[1])), 4
        self.term = np.empty(self.cost.shape, np.int16)

    def add(self, block: slice, total: np.ndarray, new: np.ndarray) -> None:
        left, right = self.exponents[0][:, block], self.exponents[1][block]
        largest = np.full(self.cost.shape, _NO_EXPONENT, np.int16)
        for k in range(left.shape[1]):
            np.add.outer(left[:, k], right[k], out=self.term)
            np.maximum(largest, self.term, out=largest)
        top = np.maximum(np.ldexp(1.0, largest), np.where(total == 0, 0.0, ufp(total, self.least)))
        self.cost += self.lost * top + self.unit * ufp(new, self.least)
        self.count += 4

    def error(self) -> np.ndarray:
        return inflated(self.cost, self.count)


_NO_EXPONENT = -(2**14)  # of a zero: the sum of two is still an int16, and 2 to that power is 0


def _exponents(x: np.ndarray, least: int) -> np.ndarray:
    """The exponents that values have in an alignment. Those that are not finite have none; their sums are infinite anyway."""
    exponents = np.maximum(np.frexp(x)[1] - 1, least)
    return np.where((x == 0) | ~np.isfinite(x), _NO_EXPONENT, exponents).astype(np.int16)


class _AnyBlocks:
    """Every other model: the a-priori bound of each step, with the magnitudes of its terms and of the sum before."""

    def __init__(self, a: np.ndarray, b: np.ndarray, fmt: Format, row: Instruction, output: Output, step: int):
        finite = [float(np.abs(x[np.isfinite(x)]).max(initial=0.0)) for x in (a, b)]
        stage = unit_stage(UnitSum(fmt, min(step, a.shape[1]), Fraction(max(finite))), row, output)
        self.relative, self.absolute = to_float(stage.relative), to_float(stage.absolute)
        self.sizes, self.count = magnitudes(a, b), 4

    def add(self, block: slice, total: np.ndarray, new: np.ndarray) -> None:
        self.sizes = self.sizes + np.abs(total)
        self.count += 2

    def error(self) -> np.ndarray:
        return inflated(self.relative * self.sizes + self.count * self.absolute, self.count)
