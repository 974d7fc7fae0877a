"""What an operation does to a difference: slopes over a box, and what they do forwards and backwards.

For z = g(x) and two points x^ and x of a box, g(x^) - g(x) = S (x^ - x) with a matrix S that depends on both (mean value
theorem). A `Slope` holds every such S: S = center + T with |T| <= radius, entry by entry, as linear maps on tensors. Nothing
is ever written out as a matrix: forwards a map is a torch function, backwards its transpose comes from autograd.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Map = Callable[[torch.Tensor], torch.Tensor]

#: float64's spacing above 1; a product of its smallest numbers loses less than `TINY`.
EPSILON, TINY = 2.0**-52, 2.0**-1060
_LARGEST = torch.finfo(torch.float64).max


def upwards(value: torch.Tensor, terms: int = 0) -> torch.Tensor:
    """An upper bound on the exact nonnegative expression of at most `terms` + 8 rounded steps that float64 made this of."""
    return (value * (1 + (terms + 16) * EPSILON)).add_((terms + 16) * TINY)


def raised(value: torch.Tensor, terms: int = 0) -> torch.Tensor:
    """`upwards` in the tensor's own place."""
    return value.mul_(1 + (terms + 16) * EPSILON).add_((terms + 16) * TINY)


def has_nan(value: torch.Tensor) -> bool:
    """Whether there is a NaN, or infinities of both signs: a sum is the quickest look at a tensor."""
    return bool(torch.isnan(value.sum()))


@dataclass(frozen=True)
class Operand:
    """A tensor as the rules see it, in float64: where its emulated and its reference values lie.

    value, spread      the emulated values are within `spread` of `value` (None: equal to it)
    reference, radius  the exact model's values are within `radius` of `reference` (None: equal to it)
    error              a bound on |emulated - exact|; None where value - reference +- radius says it
    known              whether both sides are given: a parameter, an input or a constant, perhaps in other places
    norm               a bound on the Euclidean norm of the errors of the whole tensor, where a pass keeps it
    """

    value: torch.Tensor
    reference: torch.Tensor
    radius: torch.Tensor | None = None
    spread: torch.Tensor | None = None
    error: torch.Tensor | None = None
    known: bool = False
    norm: float = 0.0

    @property
    def low(self) -> torch.Tensor:
        """Below every emulated and every exact value."""
        exact = _below(self.reference, self.radius)
        return exact if self._one_place else torch.minimum(_below(self.value, self.spread), exact)

    @property
    def high(self) -> torch.Tensor:
        """Above every emulated and every exact value."""
        exact = _above(self.reference, self.radius)
        return exact if self._one_place else torch.maximum(_above(self.value, self.spread), exact)

    @property
    def _one_place(self) -> bool:
        return self.spread is None and self.value is self.reference

    def surrounded_by(self, t: torch.Tensor) -> bool:
        """Whether the emulated numbers are known, and t is how far the exact ones are from them."""
        return self._one_place and t is self.radius

    @property
    def magnitude(self) -> torch.Tensor:
        """Above the magnitude of every emulated value."""
        size = self.value.abs()
        return size if self.spread is None else upwards(size + self.spread)

    @property
    def reference_magnitude(self) -> torch.Tensor:
        """Above the magnitude of every exact value."""
        size = self.reference.abs()
        return size if self.radius is None else upwards(size + self.radius)

    def difference(self) -> torch.Tensor:
        """value - reference, 0 where both are the same infinity."""
        difference = self.value - self.reference
        return torch.where(self.value == self.reference, 0.0, difference) if has_nan(difference) else difference


def _below(center: torch.Tensor, radius: torch.Tensor | None) -> torch.Tensor:
    return center if radius is None else center - _reach(center, radius)


def _above(center: torch.Tensor, radius: torch.Tensor | None) -> torch.Tensor:
    return center if radius is None else center + _reach(center, radius)


def _reach(center: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """The radius and what rounding center +- radius may lose; finite where the center is not, so that infinities stay."""
    size = center.abs().clamp_(max=_LARGEST).mul_(2 * EPSILON)
    return size.add_(radius, alpha=1 + 17 * EPSILON).add_(16 * TINY)


@dataclass(frozen=True)
class Slope:
    """Every matrix between two points of a box.

    center, size, radius  linear maps; `size` bounds |S| entry by entry, `radius` (None: nothing) bounds |S - center|
    terms                 how many numbers a result of `size` adds
    forward               t -> a bound on |S e| for |e| <= t, rounded upward, where there is a better one than size(t)
    change                e -> S e and a bound on what that is off by, where there is something quicker than `center` and `size`
    norm                  an upper bound of the spectral norm where there is a better one than size gives
    """

    center: Map
    size: Map
    radius: Map | None = None
    terms: int = 1
    forward: Map | None = None
    change: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    norm: Callable[[], float] | None = None

    def bound(self, t: torch.Tensor) -> torch.Tensor:
        """A bound on |S e| over every |e| <= t. Where t is infinite it is infinite or NaN, whatever the slope."""
        return upwards(self.size(t), self.terms) if self.forward is None else self.forward(t)

    def known(self, e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """S e for a known e: its middle and a bound on what is left, float64's rounding included."""
        if self.change is not None:
            return self.change(e)
        size = e.abs()
        rest = (self.terms + 16) * EPSILON * self.size(size)
        return self.center(e), upwards(rest if self.radius is None else rest + self.radius(size), self.terms)

    def adjoint(self, shape: torch.Size, center: torch.Tensor, rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """S^T applied to rows within `rest` of `center`, both (rows, *result shape): middle and bound in this form."""
        magnitude = center.abs()
        terms = self.terms + center[0].numel()
        bound = transpose(self.size, shape)(rest + (terms + 64) * EPSILON * magnitude)
        if self.radius is not None:
            bound = bound + transpose(self.radius, shape)(magnitude)
        return transpose(self.center, shape)(center), upwards(bound, terms)


def transpose(function: Map, shape: torch.Size) -> Map:
    """The transpose of a linear map of tensors of that shape, for a batch of rows.

    Raises RuntimeError for a map that autograd carries nothing back through: its transpose would seem to be 0.
    """
    point = torch.zeros(shape, dtype=torch.float64)

    def apply(rows: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            leaf = point.clone().requires_grad_()
            result = function(leaf)
        return torch.autograd.grad(result, leaf, rows, is_grads_batched=True)[0]

    return apply


def identity(t: torch.Tensor) -> torch.Tensor:
    return t


def linear(function: Map, terms: int = 1) -> Slope:
    """An operation that is linear with coefficients >= 0, known exactly."""
    return Slope(function, function, None, terms)


def diagonal(low: torch.Tensor, high: torch.Tensor) -> Slope:
    """An elementwise operation whose slopes lie in [low, high]; NaN counts as unbounded."""
    return diagonal_over(lambda: (low, high))


def diagonal_over(extent: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> Slope:
    """The same for what `extent` gives once something asks for it."""

    @functools.cache
    def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        low, high = extent()
        center = (low + high) / 2
        size = torch.maximum(low.abs(), high.abs())
        size = torch.where(size.isnan() | center.isnan(), torch.inf, size)
        center = torch.where(size == torch.inf, 0.0, center)
        radius = torch.where(low == high, 0.0, upwards((high - low) / 2 + EPSILON * size))
        radius = torch.where(size == torch.inf, torch.inf, radius)
        return center, size, radius

    return Slope(lambda t: t * parts()[0], lambda t: t * parts()[1], lambda t: t * parts()[2])


def scaled(low: torch.Tensor, high: torch.Tensor, function: Callable[[Any, Any], Any], terms: int) -> Slope:
    """t -> function(t, w), bilinear, for every w in [low, high]."""

    @functools.cache
    def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        middle = (low + high) / 2
        radius = upwards((high - low) / 2 + EPSILON * middle.abs())
        return middle, upwards(middle.abs() + radius), radius

    if low is high:
        size = functools.cache(low.abs)
        return Slope(lambda t: function(t, low), lambda t: function(t, size()), None, terms)
    return Slope(
        lambda t: function(t, parts()[0]), lambda t: function(t, parts()[1]), lambda t: function(t, parts()[2]), terms
    )
