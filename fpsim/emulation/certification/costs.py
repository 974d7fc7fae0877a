"""What the emulated machine adds at one operation: accumulation, last rounding, and inf where it may have overflowed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from fpsim.accumulation.kinds import PARTS, TREE, UNIT
from fpsim.emulation.certification.followed import can_follow, follow
from fpsim.emulation.certification.single import SINGLE_FROM, product_above
from fpsim.emulation.certification.slopes import raised, upwards
from fpsim.emulation.certification.table import INSIDE, Call, OperationRow, Products
from fpsim.emulation.machine.policy import Policy
from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding
from fpsim.theory.accumulations import AccumulationBound, accumulation_bound
from fpsim.theory.roundings import RoundingBound, holds, rounding_bound, underflow_error, unit
from fpsim.theory.upward import to_float

_SLIGHT = 0.5  # of the operands' own roundings: up to that share accumulations are bounded by magnitudes, not followed
_SHOWING = (Rounding.NEAREST_EVEN, Rounding.NEAREST_AWAY, Rounding.STOCHASTIC)


def shows_overflow(fmt: Format, rounding: Rounding) -> bool:
    """Whether what overflows becomes an infinity or a NaN, and not the largest number."""
    return not fmt.saturate and rounding in _SHOWING


@dataclass(frozen=True)
class LocalError:
    """What one operation adds: `total` bounds it. `fixed` and the roundings whose squares add up to `squares` do so too,
    the latter as independent draws; what is in neither is inf in both."""

    total: torch.Tensor
    fixed: torch.Tensor
    squares: torch.Tensor


class Store(NamedTuple):
    """A rounded result errs by at most share * max(ufp(result), least) + constant."""

    share: float
    least: float
    constant: float


class Costs:
    """The emulated machine's own errors, operation by operation.

    `run` says that the emulated results are those of a recorded run (`call.emulated`), so that an overflow shows; else
    they are any within the operands' ranges, and `call.result` bounds their magnitudes before the last rounding. `squares`
    asks for the parts of `LocalError` that probabilistic bounds need, `quick` for bounds by magnitudes where they are little
    looser.
    Results are rounded to `stored`; left out, to the policy's format.
    """

    def __init__(
        self, policy: Policy, run: bool, squares: bool = False, quick: bool = False, stored: Format | None = None
    ):
        self.policy, self.run, self.squares, self.quick = policy, run, squares, quick
        self.stored = policy.fmt if stored is None else stored
        self.visible = run and shows_overflow(self.stored, policy.rounding)

    def parts(self, call: Call, row: OperationRow) -> LocalError | None:
        """Bounds on |emulated result - exact result of the emulated operands|; None where the operation rounds nothing."""
        if row.kind == "exact":
            return None
        if row.arithmetic is not None:
            policy, stored = row.arithmetic(call, self.policy)
            if (policy, stored) != (self.policy, self.stored):
                return Costs(policy, self.run, self.squares, self.quick, stored)._parts(call, row)
        return self._parts(call, row)

    def _parts(self, call: Call, row: OperationRow) -> LocalError | None:
        policy = self.policy
        sums = None if row.products is None else row.products(call)
        if self.run and sums is not None and can_follow(policy, sums) and self.slight(sums) is None:
            assert call.emulated is not None
            return LocalError(*follow(policy, sums, call.emulated, self.squares, self.stored))
        store = rounding_bound(self.stored, policy.rounding)
        if row.kind == "rounded":
            inner = row.cost(call, INSIDE)
        else:
            assert sums is not None
            inner, store = self._accumulated(sums)
        stored = self._stored(call, store, inner)
        total = stored if inner is None else raised(stored + inner)
        if not self.squares:
            return LocalError(total, total, total)
        return LocalError(total, total if inner is None else inner + 0 * total, stored**2)

    def slight(self, sums: Products) -> AccumulationBound | None:
        """The accumulator's bound by magnitudes alone, where that is small beside what the operands' own roundings come to.

        Following every partial sum takes several times the work. None where that is due.
        """
        policy, accumulator = self.policy, self.policy.accumulator
        if not self.quick or accumulator.kind not in (TREE, PARTS):
            return None
        if not self._accumulator_shows(accumulator.promoted or accumulator.format):
            return None
        bound = self._bound(sums)
        small = rounding_bound(policy.fmt, policy.rounding).relative * _SLIGHT
        return bound if not bound.zero_below and bound.relative <= small else None

    def store(self, held: Format | None, addend: bool = False) -> Store:
        """What the last rounding of a sum in `held` (None: of any number), and before it of an `addend`'s addition, err by.

        Rounding to a neighbor never crosses a power of two: ufp of the result is no smaller than it was for the addition.
        """
        fmt, rounding = self.stored, self.policy.rounding
        store = Store(0.0, fmt.min_normal, 0.0)
        formats = [fmt] if held is None or not holds(fmt, held) else []
        if addend and held is not None:
            formats.append(held)
        for rounded in formats:
            flushed = to_float(underflow_error(rounded, rounding)) if rounded.flush else 0.0
            least = max(store.least, rounded.min_normal)
            store = Store(store.share + float(unit(rounded, rounding)), least, store.constant + flushed)
        return store

    def _accumulated(self, sums: Products) -> tuple[torch.Tensor, RoundingBound]:
        """The error up to the last rounding by the terms' magnitudes alone, and the bound of that rounding."""
        policy = self.policy
        bound = self._bound(sums)
        magnitudes = raised(sums.magnitudes(product_above if sums.terms >= SINGLE_FROM else None))
        held = bound.format or self.stored
        visible = self.visible and self._accumulator_shows(held)
        error = _of(bound, magnitudes, visible)
        if bound.zero_below:
            error = error + _flushed(sums, bound.zero_below)
        store = rounding_bound(self.stored, policy.rounding, held=bound.format)
        if sums.divisor != 1:
            kept = rounding_bound(held, policy.rounding)
            if policy.accumulator.kind.stands_alone:
                error = error + _of(kept, upwards(magnitudes + error), visible)
            error = error / sums.divisor
            last = _of(kept, upwards(magnitudes / sums.divisor + error), visible)
            error = upwards(error + last)
        return error, store

    def _bound(self, sums: Products) -> AccumulationBound:
        policy = self.policy
        largest = None
        if policy.accumulator.kind is UNIT:
            size = max(float(factor.magnitude.max()) if factor.value.numel() else 0.0 for factor in sums.factors)
            if math.isfinite(size):  # the next power of two, so that few bounds are made
                exponent = math.ceil(math.log2(max(size, policy.fmt.min_subnormal)))
                largest = 2.0**exponent if exponent <= policy.fmt.emax else policy.fmt.max_finite
        return accumulation_bound(
            policy.fmt, policy.accumulator, sums.terms, policy.rounding, products=sums.factors[1].value.dim() > 0,
            addends=0 if sums.addend is None else 1, operand_largest=largest,
        )  # fmt: skip

    def _accumulator_shows(self, held: Format) -> bool:
        """Whether an infinity inside the accumulator comes out as one."""
        accumulator = self.policy.accumulator
        if accumulator.kind is UNIT:
            return False
        formats = {accumulator.format, held} if accumulator.kind.widens else {held}
        return all(shows_overflow(fmt, self.policy.rounding) for fmt in formats)

    def _stored(self, call: Call, store: RoundingBound, inner: torch.Tensor | None) -> torch.Tensor:
        """The last rounding's error; inf where the result overflowed or may have saturated."""
        if not self.run:
            assert call.result is not None
            size = call.result.abs()
            return _of(store, size if inner is None else upwards(size + inner), False)
        result = call.emulated
        assert result is not None
        size = result.abs()
        # |round(t) - t| <= v |t| + a, and |t| <= (|round(t)| + a) / (1 - v)
        share = store.relative / (1 - store.relative) if store.relative < 1 else math.inf
        bound = raised((size * share).add_(store.absolute / (1 - min(store.relative, 0.5))))
        if _all_below(size, self.stored.max_finite):
            return bound
        lost = ~torch.isfinite(result)
        if not self.visible:
            lost = lost | (size >= self.stored.max_finite)
        return torch.where(lost, torch.inf, bound)


def _of(bound: AccumulationBound | RoundingBound, magnitudes: torch.Tensor, visible: bool) -> torch.Tensor:
    """The bound for these magnitudes; inf where they may overflow unseen."""
    error = raised(raised(magnitudes * bound.relative).add_(bound.absolute))
    if visible or _all_below(magnitudes, bound.largest):
        return error
    return torch.where(magnitudes <= bound.largest, error, torch.inf)


def _all_below(sizes: torch.Tensor, limit: float) -> bool:
    return sizes.numel() == 0 or bool(sizes.max() < limit)  # a NaN is the largest


def _flushed(sums: Products, zero_below: float) -> torch.Tensor:
    """What operands that count as zeros would have added."""
    a, b = (factor.magnitude for factor in sums.factors)
    small_a, small_b = (size.clamp(max=zero_below) * ((size > 0) & _may_be_below(factor, zero_below))
                        for size, factor in ((a, sums.factors[0]), (b, sums.factors[1])))  # fmt: skip
    lost = sums.multiply(small_a, b) + sums.multiply(a, small_b)
    if sums.addend is not None:
        size = sums.addend.magnitude
        lost = lost + sums.spread_addend(size.clamp(max=zero_below) * _may_be_below(sums.addend, zero_below))
    return upwards(lost, 2 * sums.terms)


def _may_be_below(factor: Any, zero_below: float) -> torch.Tensor:
    size = factor.value.abs()
    return (size if factor.spread is None else size - factor.spread) < zero_below
