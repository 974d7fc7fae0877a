"""Long products of a running pass: bounds multiplied in float32, and added up in one look at each result.

With a and b for the emulated factors and e for what they are off by, a b - a' b' = e_a b' + a e_b. Changes that are known
keep their signs. Where the accumulator hardly adds (c sum |a b|, with a small c), c |a| joins the errors of the first factor,
so that one product with |b| serves both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from fpsim.emulation.certification.adding import Weights, added_up
from fpsim.emulation.certification.costs import Costs, Store
from fpsim.emulation.certification.followed import can_follow, follow, follow_tree
from fpsim.emulation.certification.single import LEAST, UNIT, multiplied, near_rest
from fpsim.emulation.certification.slopes import Operand
from fpsim.emulation.certification.table import Call, Products
from fpsim.numbers.formats import Format
from fpsim.theory.roundings import holds

_FROM, _TO = 8, 2**14  # terms: float32's own errors grow with them, and stay far below those of 16 bits
_LARGEST = 2.0**48  # of factors, with room for thousands of their products


class TooLarge(Exception):
    """Numbers of which float32 might not hold a product."""


class _Parts:
    """What an error is made of: changes known with their signs, what they are off by in every row, and bounds."""

    def __init__(self, sums: Products):
        self.sums = sums
        self.near: torch.Tensor | None = None
        self.rest = torch.zeros(1, dtype=torch.float64)
        self.above: torch.Tensor | None = None
        self.scale = 1.0  # a power of two, times which the bounds above are meant

    def add_near(self, a: torch.Tensor, b: torch.Tensor, change: torch.Tensor) -> None:
        """`change` is the one of both that may be zero throughout."""
        if change.amax() == 0 == change.amin():
            return
        rest = near_rest(self.sums, a, b)
        if not float(rest.max()) < _LARGEST:
            raise TooLarge
        self.rest = self.rest + rest
        self.add_change(multiplied(self.sums, a.float(), b.float()))

    def add_change(self, term: torch.Tensor) -> None:
        self.near = term if self.near is None else self.near.add_(term)

    def add_above(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """For a, b >= 0, which are overwritten."""
        if not (float(a.max()) < _LARGEST and float(b.max()) < _LARGEST):
            raise TooLarge
        self.add_bounds(multiplied(self.sums, a.clamp_(min=LEAST), b.clamp_(min=LEAST)))

    def scale_to(self, largest: float) -> None:
        """Make room for errors that float32 would not multiply."""
        if _LARGEST <= largest < math.inf:
            self.scale = 2.0 ** (math.frexp(largest)[1] - 40)

    def add_bounds(self, term: torch.Tensor) -> None:
        """Of numbers that are scaled already."""
        self.above = term if self.above is None else self.above.add_(term)

    def added_up(
        self, result: torch.Tensor, fmt: Format, store: Store, constant: float = 0.0,
        local: torch.Tensor | None = None, factor: float = 1.0,
    ) -> torch.Tensor | None:  # fmt: skip
        """The sum, with factor * own + constant and the rounding of the result; None where that may have overflowed.

        float32's sum of n products errs by (n + 2) 2^-24 of its magnitudes, four bounds in float32 by 2^-21 more.
        """
        terms = self.sums.terms
        by_above = (1 + (terms + 32) * UNIT) * self.scale
        constant += store.constant + (terms + 8) * 2.0**-146 * max(1.0, self.scale)
        weights = Weights(
            near=1 + 2 * UNIT, above=by_above, local=factor, result=store.share, least=store.least, constant=constant
        )
        return added_up(result, (self.near, self.above, local, None), self.rest, weights, fmt)


def long_product_error(
    costs: Costs, call: Call, sums: Products, singles: Mapping[int, torch.Tensor], result: torch.Tensor
) -> torch.Tensor | None:
    """A bound on |emulated - exact| for every element, in float64; None where this form does not serve.

    `singles` are the emulated values of the operands in float32, by the operand's id, and `result` those of the result. The
    form serves machines whose overflows show, results that are finite, and numbers of which float32 holds the products.
    """
    if result.numel() == 0 or not costs.visible or sums.reach is None or sums.divisor != 1 or not _FROM <= sums.terms <= _TO:
        return None
    slight = costs.slight(sums)
    if slight is None and not can_follow(costs.policy, sums):
        return None
    growth = 0.0 if slight is None else slight.relative
    parts = _Parts(sums)
    try:
        _add_factors(parts, [singles[id(factor)] for factor in sums.factors], growth)
    except TooLarge:
        return None
    fmt, held = costs.policy.fmt, costs.policy.accumulator.format
    if sums.addend is not None:
        _add_addend(parts, sums.addend, singles[id(sums.addend)], growth, result.shape)
    if slight is not None:
        return parts.added_up(result, fmt, costs.store(slight.format), slight.absolute)
    tree = follow_tree(costs.policy, sums)
    if tree is None or not holds(held, fmt):
        assert call.emulated is not None
        local = follow(costs.policy, sums, call.emulated, False)[0]
        return parts.added_up(result, fmt, Store(0.0, 0.0, 0.0), local=local)
    kept, factor, constant = tree
    store = costs.store(held, addend=sums.addend is not None)
    return parts.added_up(result, fmt, store, constant, kept.reshape(result.shape), factor)


def _add_factors(parts: _Parts, singles: Sequence[torch.Tensor], growth: float) -> None:
    """e_a b' + a e_b, and the growth of |a| |b|; `singles` are a and b."""
    (a, b), (left, right) = parts.sums.factors, singles
    error = None
    if not a.known:
        assert a.error is not None
        if b.known:
            parts.scale_to(float(a.error.max()))
        error = _bound(a, parts.scale)
    elif a.value is not a.reference:
        change = _change(a)
        if b.known:
            parts.add_near(change, b.reference, change)
        else:
            error = change.abs_()
    if growth:
        error = (torch.zeros_like(left) if error is None else error).add_(left.abs(), alpha=growth / parts.scale)
    if error is not None:
        size = b.reference.float().abs_() if b.radius is None else b.reference_magnitude.float()
        parts.add_above(error, torch.maximum(size, right.abs()) if growth and b.value is not b.reference else size)
    if not b.known:
        parts.add_above(left.abs(), _bound(b, 1.0))
    elif b.value is not b.reference:
        change = _change(b)
        parts.add_near(left, change, change)


def _change(operand: Operand) -> torch.Tensor:
    """emulated - exact of known numbers, but for the rounding to float32."""
    return torch.sub(operand.value, operand.reference).float()


def _bound(operand: Operand, scale: float) -> torch.Tensor:
    """A bound on |emulated - exact| that is not known, over a power of two, but for the rounding to float32."""
    assert operand.error is not None
    return (operand.error if scale == 1 else operand.error / scale).float()


def _add_addend(parts: _Parts, addend: Operand, single: torch.Tensor, growth: float, shape: torch.Size) -> None:
    spread = parts.sums.spread_addend
    if addend.known and addend.value is not addend.reference:
        change = _change(addend)
        parts.rest = parts.rest + UNIT * float(change.abs().max())
        if not change.amax() == 0 == change.amin():
            parts.add_change(spread(change) if parts.near is not None else spread(change).expand(shape).contiguous())
    if not addend.known or growth:
        bound = torch.zeros_like(single) if addend.known else _bound(addend, parts.scale)
        term = spread(bound.add_(single.abs(), alpha=growth / parts.scale))
        parts.add_bounds(term if parts.above is not None else term.expand(shape).contiguous())
