"""Long products of a running pass: bounds multiplied in float32, and added up in one look at each result.

With a and b for the emulated factors and e for what they are off by, a b - a' b' = e_a b' + a e_b. Changes that are known
keep their signs. Where the accumulator hardly adds (c sum |a b|, with a small c), c |a| joins the errors of the first factor,
so that one product with |b| serves both.
"""

from __future__ import annotations

import numpy as np
import torch

from fpsim._kernels.error_sums import ABOVE, CONSTANT, NEAR, OWN, RESULT, make_add_up
from fpsim.emulation.certification.costs import Machine
from fpsim.emulation.certification.followed import can_follow, follow, follow_tree
from fpsim.emulation.certification.single import SINGLE_FROM, SINGLE_TO, fitted, multiplied, near_rest
from fpsim.emulation.certification.slopes import Operand
from fpsim.emulation.certification.table import Call, Products
from fpsim.formats import Format
from fpsim.theory.roundings import holds

_UNIT = 2.0**-23
_TOO_LARGE = 2.0**80


class TooLarge(Exception):
    """Numbers of which float32 might not hold a product."""


class _Parts:
    """What an error is made of: changes known with their signs, what they are off by in every row, and bounds."""

    def __init__(self, sums: Products):
        self.sums = sums
        self.near: torch.Tensor | None = None
        self.rest = torch.zeros(1, dtype=torch.float64)
        self.above: torch.Tensor | None = None

    def add_near(self, a: torch.Tensor, b: torch.Tensor) -> None:
        rest = near_rest(self.sums, a, b)
        if not float(rest.max()) < _TOO_LARGE:
            raise TooLarge
        found = multiplied(self.sums, a.float(), b.float())
        self.near = found if self.near is None else self.near.add_(found)
        self.rest = self.rest + rest

    def add_above(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """For a, b >= 0."""
        (left, first), (right, second) = fitted(a), fitted(b)
        if first != 1 or second != 1:
            raise TooLarge
        self.add_bounds(multiplied(self.sums, left, right))

    def add_bounds(self, found: torch.Tensor) -> None:
        self.above = found.clone(memory_format=torch.contiguous_format) if self.above is None else self.above.add_(found)

    def added_up(
        self, result: torch.Tensor, own: torch.Tensor | None, factors: tuple[float, float, float], fmt: Format
    ) -> torch.Tensor | None:
        """The sum, with `factors` times (own, |result|, 1); None where the result may have overflowed.

        float32's sum of n products errs by (n + 2) 2^-24 of its magnitudes, four bounds in float32 by 2^-21 more.
        """
        terms = self.sums.terms
        rows = (self.rest.numel(), -1)
        shape, lines = result.shape, result.contiguous().reshape(rows).numpy()
        above = torch.zeros_like(result) if self.above is None else self.above
        arrays = [lines if part is None else part.contiguous().reshape(rows).numpy() for part in (above, self.near, own)]
        weights = np.empty(5)
        weights[[ABOVE, NEAR]] = 1 + (terms + 32) * _UNIT, 1 + _UNIT
        weights[[OWN, RESULT, CONSTANT]] = factors
        weights[CONSTANT] += (terms + 8) * 2.0**-146
        out = np.empty(lines.shape)
        add_up = make_add_up(self.near is not None, own is not None)
        largest = np.int32(add_up(lines, *arrays, self.rest.reshape(-1).numpy(), weights, out)).view(np.float32)
        return torch.from_numpy(out).reshape(shape) if largest < fmt.max_finite else None


def long_product_error(
    machine: Machine, call: Call, sums: Products, first: torch.Tensor, result: torch.Tensor
) -> torch.Tensor | None:
    """A bound on |emulated - exact| for every element, in float64; None where this form does not serve.

    `first` and `result` are the emulated values of the first factor and of the result in float32. The form serves rounding
    to nearest, results that are finite, and numbers of which float32 holds the products.
    """
    if not machine.visible or sums.reach is None or sums.divisor != 1 or not SINGLE_FROM <= sums.terms <= SINGLE_TO:
        return None
    slight = machine.slight(sums)
    if slight is None and not can_follow(machine.policy, sums):
        return None
    growth = 0.0 if slight is None else slight.relative
    parts = _Parts(sums)
    try:
        _add_factors(parts, first, growth)
    except TooLarge:
        return None
    if sums.addend is not None:
        parts.add_bounds(_of_addend(sums, sums.addend, growth).expand(result.shape))
    if slight is not None:
        share, least = machine.store(slight.format)
        return parts.added_up(result, None, (0.0, share, least + slight.absolute), machine.policy.fmt)
    assert call.emulated is not None
    tree = follow_tree(machine.policy, sums)
    if tree is None or not holds(machine.policy.accumulator.format, machine.policy.fmt):
        own = follow(machine.policy, sums, call.emulated, False)[0]
        return parts.added_up(result, own, (1.0, 0.0, 0.0), machine.policy.fmt)
    kept, factor, constant = tree
    share, least = machine.store(machine.policy.accumulator.format)
    if sums.addend is not None:
        more, lesser = machine.added()
        share, least = share + more, least + lesser
    return parts.added_up(result, kept, (factor, share, least + constant), machine.policy.fmt)


def _add_factors(parts: _Parts, single: torch.Tensor, growth: float) -> None:
    """e_a b' + a e_b, and the growth of |a| |b|; `single` is a."""
    a, b = parts.sums.factors
    error = None
    if not a.known:
        error = _bound(a)
    elif a.value is not a.reference:
        if b.known:
            parts.add_near(a.difference(), b.reference)
        else:
            error = a.difference().abs().float()
    if growth:
        error = (torch.zeros_like(single) if error is None else error).add_(single.abs(), alpha=growth)
    if error is not None:
        parts.add_above(error, b.reference_magnitude if b.value is b.reference else torch.maximum(*_sizes(b)))
    if not b.known:
        parts.add_above(single.abs(), _bound(b))
    elif b.value is not b.reference:
        parts.add_near(single, b.difference())


def _sizes(operand: Operand) -> tuple[torch.Tensor, torch.Tensor]:
    return operand.magnitude, operand.reference_magnitude


def _bound(operand: Operand) -> torch.Tensor:
    """A bound on |emulated - exact| but for the rounding to float32, of numbers or of differences that are known."""
    if operand.known:
        return operand.difference().abs().float()
    assert operand.error is not None
    return operand.error.float()


def _of_addend(sums: Products, addend: Operand, growth: float) -> torch.Tensor:
    return sums.spread_addend(_bound(addend).add_(addend.magnitude.float(), alpha=growth))
