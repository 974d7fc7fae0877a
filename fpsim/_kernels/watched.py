"""What products keep beside every sum to bound its error: the powers of two below all that was rounded, added up.

One rounding errs by at most u * ufp(result) to nearest, 2u * ufp(result) in other modes; ufp is the power of two at or below
a magnitude (Rump, Ogita and Oishi, SIAM J. Sci. Comput. 31, 2008, section 2). A result below 2^emin counts as 2^emin
where it may be inexact. A result of `max_finite` and above counts as infinite: it may have saturated.
"""

from __future__ import annotations

from typing import Any

from fpsim._kernels.products import Step
from fpsim._kernels.sums_rounding import LOWEST, MAX_FINITE
from fpsim._kernels.tiles import EXPONENT, TileType, Vector, larger, splat, tile_of, vectors_of

# What is kept: sums of ufp, or of its squares; for leaves that are exact or not (then they count too).
MAGNITUDES, SQUARES, MAGNITUDES_EXACT_LEAVES, SQUARES_EXACT_LEAVES = range(2, 6)


class WatchingStep(Step):
    """The operations of a tile, and one sum for each of its elements."""

    def __init__(
        self, context: Any, builder: Any, tile: TileType, mode: int, flags: int, constants: Any, kept: Any, what: int
    ):
        super().__init__(context, builder, tile, mode, flags, constants)
        self.kept = vectors_of(builder, kept, tile.count)
        self.squares = what in (SQUARES, SQUARES_EXACT_LEAVES)
        self.exact_leaves = what in (MAGNITUDES_EXACT_LEAVES, SQUARES_EXACT_LEAVES)
        self.place = 0

    def _cost(self, result: Vector, may_underflow: bool) -> Vector:
        power = (result.ints() & EXPONENT[result.width]).floats()  # infinite for what is not finite
        if may_underflow and not self.arithmetic.native:
            power = larger(power, self.arithmetic[LOWEST])
        if not self.arithmetic.careful:
            return power
        infinite = splat(self.builder, power.type.element(float("inf")), power.lanes)
        return result.absolute().compare("<", self.arithmetic[MAX_FINITE]).select(power, infinite)

    def _keep(self, cost: Vector, given: Vector | None) -> None:
        """Add to the sum of the vector whose turn it is, where `given` holds, and go on to the next."""
        if self.squares:
            cost = cost * cost
        if given is not None:
            cost = given.select(cost, splat(self.builder, cost.type.element(0.0), cost.lanes))
        self.kept[self.place] = self.kept[self.place] + cost
        self.place += 1

    def leaf(self, left: Vector, right: Vector, draw: Vector | None) -> Vector:
        leaf = self.arithmetic.leaf(left, right, draw)
        if not self.exact_leaves:
            self._keep(self._cost(leaf, True), _nonzero(left, right))
        return leaf

    def chain(self, old: Vector, left: Vector, right: Vector, draws: tuple[Vector | None, Vector | None]) -> Vector:
        given = _nonzero(left, right)  # a zero term changes nothing
        if self.arithmetic.exact_products:
            new = self.arithmetic.chain(old, left, right, draws)
            self._keep(self._cost(new, True), given)
            return new
        leaf = self.arithmetic.leaf(left, right, draws[0])
        if not self.exact_leaves:
            self._keep(self._cost(leaf, True), given)
            self.place -= 1
        new = self.arithmetic.add(old, leaf, draws[1])
        self._keep(self._cost(new, False), given)
        return new

    def add(self, left: Vector, right: Vector, draw: Vector | None) -> Vector:
        new = self.arithmetic.add(left, right, draw)
        values = not self.arithmetic.exact_products  # then a sum with zero rounds nothing
        self._keep(self._cost(new, not values), _nonzero(left, right) if values else None)
        return new

    def results(self, signature: Any, tile: Any, vectors: list[Vector], seen: Any, kept: Any) -> Any:
        values = [tile_of(self.builder, tile.type, vectors), self.tracked(seen), tile_of(self.builder, kept.type, self.kept)]
        return self.context.make_tuple(self.builder, signature.return_type, values)


def _nonzero(left: Vector, right: Vector) -> Vector:
    """The lanes in which neither is zero; those of NaN do not count as zero."""
    zero = left.compare("==", 0.0) | right.compare("==", 0.0)
    return zero ^ 1
