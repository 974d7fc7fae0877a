"""The models of hardware units, stage by stage (see `fpsim/accumulation/instructions.py` for what each does).

A block that aligns its terms to the largest exponent E and truncates them to multiples of 2^(E-F) loses less than that in each:
N products and the addend lose less than (N + 1) 2^(E-F), and 2^E is at most the largest magnitude, unless an operand is
subnormal: its exponent counts as the least. Blanchard, Higham, Lopez, Mary and Pranesh (SIAM J. Sci. Comput. 42, 2020) assume
instead that a block's sum is exact or rounded at every addition, which tensor cores do not do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from fpsim.accumulation.instructions import FLUSHED, Instruction, Output
from fpsim.numbers.formats import FP32, Format
from fpsim.numbers.modes import Rounding
from fpsim.theory.roundings import addition_underflow, multiples, relative_error
from fpsim.theory.trees import Stage, once
from fpsim.theory.upward import grown, shortened

_NEAREST = Rounding.NEAREST_EVEN


@dataclass(frozen=True)
class UnitSum:
    """What a unit sums: `count` products of values of `operand`, none of which exceeds `largest` in magnitude."""

    operand: Format
    count: int
    largest: Fraction

    def blocks(self, size: int) -> int:
        return -(-self.count // size)

    @property
    def subnormal_power(self) -> Fraction:
        """The largest 2^E that is due to a subnormal operand."""
        power = Fraction(2) ** (self.largest.numerator.bit_length() - self.largest.denominator.bit_length())
        return Fraction(2) ** self.operand.emin * max(power, Fraction(2) ** self.operand.emin)


def _repeated(step: Stage, count: int) -> Stage:
    """`count` such steps in a chain, each with the running sum among its terms."""
    relative = grown(step.relative, count)
    return Stage(relative, shortened(count * step.absolute * (1 + relative)), step.top)


def _aligned(sums: UnitSum, terms: int, fraction: int, output: Format, rounding: Rounding) -> Stage:
    """One block: truncation of `terms` products and the addend below the largest exponent, then one rounding."""
    lost = Fraction(terms + 1, 2**fraction)
    power = max(sums.subnormal_power, Fraction(2) ** output.emin)  # the addend's, where it is subnormal
    return Stage(lost, lost * power, output.max_finite).then(once(output, rounding))


def _block(sums: UnitSum, row: Instruction, output: Output) -> Stage:
    step = _aligned(sums, row.block, row.fraction, output.format, Rounding(output.rounding))
    return _repeated(step, sums.blocks(row.block))


def _emulated(sums: UnitSum, row: Instruction, output: Output) -> Stage:
    inner = Rounding.TOWARD_ZERO if output.format == FP32 else _NEAREST
    groups = sums.blocks(row.block)
    pair = _repeated(_aligned(sums, row.block // 2, row.fraction, output.format, inner), 2)
    every = Stage(pair.relative, groups * pair.absolute, pair.top)
    return every.then(_additions(groups, output.format, _NEAREST))


def _additions(count: int, held: Format, rounding: Rounding, on_grid: bool = True) -> Stage:
    """`count` additions of values of the format, or `on_grid` of such as have no last place below its own, in a chain."""
    relative = grown(relative_error(held, rounding), count)
    return Stage(relative, count * addition_underflow(held, rounding, on_grid) * (1 + relative), held.max_finite)


def _fused(sums: UnitSum, count: int, held: Format) -> Stage:
    """A chain of `count` fused multiply-adds."""
    return _additions(count, held, _NEAREST, multiples(held, sums.operand))


def _chain(sums: UnitSum, row: Instruction, output: Output) -> Stage:
    return _fused(sums, sums.count, FLUSHED if row.flush else output.format)


def _halves(sums: UnitSum, row: Instruction, output: Output) -> Stage:
    held, groups = FLUSHED if row.flush else FP32, sums.blocks(row.block)
    half = _fused(sums, min(sums.count, -(-row.block // 2)), held)
    every = Stage(half.relative, 2 * groups * half.absolute, half.top)
    return every.then(once(held, _NEAREST, on_grid=True, count=groups)).then(_additions(groups, held, _NEAREST))


def _odd_pairs(sums: UnitSum, row: Instruction, output: Output) -> Stage:
    groups = sums.blocks(row.block)
    products = once(FLUSHED, Rounding.ODD, count=2 * groups)
    pairs = once(FLUSHED, Rounding.ODD, on_grid=True, count=groups)
    return products.then(pairs).then(_additions(groups, FLUSHED, Rounding.ODD))


def _fused_pairs(sums: UnitSum, row: Instruction, output: Output) -> Stage:
    groups = sums.blocks(row.block)
    return once(FP32, _NEAREST, count=groups).then(_additions(groups, FP32, _NEAREST))


def _quads(sums: UnitSum, row: Instruction, output: Output) -> Stage:
    groups = sums.blocks(row.block)
    products = once(FLUSHED, _NEAREST, count=4 * groups)
    pairs, quads = (once(FLUSHED, _NEAREST, count=number * groups) for number in (2, 1))
    return products.then(pairs).then(quads).then(_additions(groups, FLUSHED, _NEAREST))


def _exact(sums: UnitSum, row: Instruction, output: Output) -> Stage:
    return _repeated(once(FP32, _NEAREST, multiples(FP32, sums.operand)), sums.blocks(row.block))


def _floored(sums: UnitSum, row: Instruction, output: Output) -> Stage:
    """Products truncated at 24 bits, their sum floored at 32 and the addend at 24 below the larger of both; then 31."""
    halves = row.model == "floored halves"
    terms = row.block + 1 + 2 * halves  # the addend, and each half's sum once more
    lost = Fraction(terms, 2**row.fraction) + Fraction(1, 2**32)
    power = max(sums.subnormal_power, Fraction(FP32.min_normal))
    below = Stage(lost, lost * power, FP32.max_finite)
    floor = Stage(Fraction(1, 2**31), Fraction(FP32.min_normal) / 2**31, FP32.max_finite)
    return _repeated(below.then(floor).then(once(FP32, _NEAREST)), sums.blocks(row.block))


_MODELS: dict[str, Callable[[UnitSum, Instruction, Output], Stage]] = {
    "block": _block,
    "emulated": _emulated,
    "chain": _chain,
    "halves": _halves,
    "odd pairs": _odd_pairs,
    "fused pairs": _fused_pairs,
    "quads": _quads,
    "exact": _exact,
    "floored": _floored,
    "floored halves": _floored,
}


def unit_stage(sums: UnitSum, row: Instruction, output: Output) -> Stage:
    """What an instruction does to a sum of products, the value that it starts from among its terms."""
    return _MODELS[row.model](sums, row, output)


def split_stage(sums: UnitSum, row: Instruction, output: Output, held: Format, parts: int) -> Stage:
    """The same for the terms in `parts` parts as equal as can be, whose sums are added one after the other in `held`."""
    count = max(1, min(parts, sums.count))
    part = unit_stage(replace(sums, count=-(-sums.count // count)), row, output)
    every = Stage(part.relative, count * part.absolute, part.top)
    return every.then(_additions(count - 1, held, _NEAREST))


def flushed_below(row: Instruction, operand: Format) -> float:
    """Operands of smaller magnitude count as zeros; 0 where none do."""
    if not row.flush:
        return 0.0
    return operand.min_normal if row.model == "quads" else FP32.min_normal
