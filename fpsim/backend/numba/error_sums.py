"""What products keep beside every sum to bound its error: the powers of two below all that was rounded, added up.

One rounding errs by at most u * ufp(result) to nearest, 2u * ufp(result) in other modes; ufp is the power of two at or below
a magnitude (Rump, Ogita and Oishi, SIAM J. Sci. Comput. 31, 2008, section 2). A result below 2^emin counts as 2^emin
where it may be inexact. A result of `max_finite` and above counts as infinite: it may have saturated.
"""

from __future__ import annotations

from fpsim.backend.numba.observed import (
    MAGNITUDES as MAGNITUDES,
    MAGNITUDES_EXACT_LEAVES as MAGNITUDES_EXACT_LEAVES,
    SQUARES as SQUARES,
    SQUARES_EXACT_LEAVES as SQUARES_EXACT_LEAVES,
    observes,
)
from fpsim.backend.numba.sums_rounding import LOWEST, MAX_FINITE
from fpsim.backend.numba.tile_operations import BY_ELEMENT, TileOperation
from fpsim.backend.numba.tiles import EXPONENT, Stored, Vector, larger_power, splat


@observes(MAGNITUDES, SQUARES, MAGNITUDES_EXACT_LEAVES, SQUARES_EXACT_LEAVES)
class ErrorSumTileOperation(TileOperation):
    """The operations of a tile, and one sum for each of its elements."""

    tallies = BY_ELEMENT

    def keep(self, tallied: Stored, observer: int) -> None:
        self.kept = tallied
        self.squares = observer in (SQUARES, SQUARES_EXACT_LEAVES)
        self.exact_leaves = observer in (MAGNITUDES_EXACT_LEAVES, SQUARES_EXACT_LEAVES)
        self.place = 0

    def _cost(self, result: Vector, may_underflow: bool) -> Vector:
        power = (result.ints() & EXPONENT[result.width]).floats()  # infinite for what is not finite
        if may_underflow and not self.arithmetic.format_is_carrier:
            power = larger_power(power, self.arithmetic[LOWEST])
        if self.arithmetic.careful:
            infinite = splat(self.builder, power.type.element(float("inf")), power.lanes)
            power = result.absolute().compare("<", self.arithmetic[MAX_FINITE]).select(power, infinite)
        return power * power if self.squares else power

    def _keep(self, result: Vector, cost: Vector | None, terms: tuple[Vector, Vector] | None) -> None:
        """Add to the sums of the vectors whose turn it is, where none of the terms is zero, and go on to the next."""
        if cost is not None and terms is not None:
            zero = terms[0].compare("==", 0.0) | terms[1].compare("==", 0.0)
            cost = zero.select(splat(self.builder, cost.type.element(0.0), cost.lanes), cost)
        for offset, part in enumerate(cost.split() if cost is not None else ()):
            self.kept[self.place + offset] = self.kept[self.place + offset] + part
        self.place += len(result.values)

    def _cost_of_leaf(self, leaf: Vector) -> Vector | None:
        return None if self.exact_leaves else self._cost(leaf, True)

    def leaf(self, left: Vector, right: Vector, draw: Vector | None) -> Vector:
        leaf = self.arithmetic.leaf(left, right, draw)
        self._keep(leaf, self._cost_of_leaf(leaf), (left, right))
        return leaf

    def chain(self, old: Vector, left: Vector, right: Vector, *draws: Vector | None) -> Vector:
        if self.arithmetic.exact_products:
            new = self.arithmetic.chain(old, left, right, (draws[0], draws[1]))
            self._keep(new, self._cost(new, True), (left, right))
            return new
        leaf = self.arithmetic.leaf(left, right, draws[0])
        new = self.arithmetic.add(old, leaf, draws[1])
        cost, before = self._cost(new, False), self._cost_of_leaf(leaf)
        self._keep(new, cost if before is None else cost + before, (left, right))  # a zero product changes nothing
        return new

    def add(self, left: Vector, right: Vector, draw: Vector | None) -> Vector:
        new = self.arithmetic.add(left, right, draw)
        values = not self.arithmetic.exact_products  # then a sum with zero rounds nothing
        self._keep(new, self._cost(new, not values), (left, right) if values else None)
        return new
