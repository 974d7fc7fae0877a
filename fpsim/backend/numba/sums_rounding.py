"""How one addition or product is rounded, as instructions on `Vector`s.

Nearest even needs no branch and no table: with E the power of two below |x| and c = 1.5 * 2^(carrier bits - p) * E, the
carrier's own addition rounds x + c at the format's last place, and taking c away is exact. The other modes correct that
result by one ulp, seen from the exact error.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

from fpsim.backend.numba.compiler import inlined
from fpsim.backend.numba.directions import DOWNWARD, HAS_DIRECTIONS, INWARD, UPWARD, direction_setters, operations
from fpsim.backend.numba.processor import HAS_FMA
from fpsim.backend.numba.rounding import DOWN, NEAREST_AWAY, NEAREST_EVEN, ODD, STOCHASTIC, TOWARD_ZERO, UP
from fpsim.backend.numba.tiles import EXPONENT, SIGN, Vector, larger_power, smaller, splat, together, unless_all

# What a row of constants holds, as floats of the carrier.
LOWEST = 0  # 2^emin: below it the quantum stays; tiny where subnormals are flushed, for the flush is judged afterwards
MAGIC = 1  # 1.5 * 2^(carrier bits - p)
ULP = 2  # 2^(1 - p), the ulp of 1
HIGHEST = 3  # E is held below this, so that no intermediate overflows
MAX_FINITE = 4
OVERFLOW_POSITIVE, OVERFLOW_NEGATIVE = 5, 6  # signed values that overflow gives
INFINITE = 7  # what an infinity becomes
FLUSH_BEFORE, FLUSH_AFTER = 8, 9  # magnitudes below become zero; 0 where subnormals stay
ZERO = 10  # -0, or +0 in a format without -0
TOP = 11  # stochastic: the distance from max_finite to 2^(emax+1)
MINUS = 12  # -1, which the compiler does not know
FIRST_INFINITE = 13  # the smallest magnitude that nearest even makes infinite
LENGTH = 14

CAREFUL = 1  # overflow, infinities, NaN and flushing are handled; without it the caller watches the magnitudes
EXACT_PRODUCTS = 2  # leaves are exact, so that every addition needs its residual
CLAMP = 4  # products may lie below 2^emin
TRACK = 8  # keep the largest exponent seen
TRACK_SUMS = 64  # the same for sums alone: products are known to stay below the limit
EXACT_SUMS = 32  # sums of two values, and what stochastic rounding adds to them, are exact in the carrier
BY_BITS = 128  # stochastic in float32: draws are added to the bits, and what that cannot decide is done in float64
OVERFLOWS = 256  # to nearest even, what overflows becomes infinite, and infinities and NaN stay: nothing is to be watched
FORMAT_IS_CARRIER = 16  # the carrier is the format: nothing to round


# What a midpoint of the format bounds, the carrier's rounding toward zero leaves on its side: so with ties away, too.
_DIRECTIONS = {NEAREST_AWAY: INWARD, TOWARD_ZERO: INWARD, UP: UPWARD, DOWN: DOWNWARD}


def held_for(mode: int, flags: int) -> int | None:
    """The direction that a kernel's register holds, if directions come from one; None for to nearest even."""
    if mode == STOCHASTIC:
        return INWARD if flags & (BY_BITS | EXACT_SUMS) else None
    return DOWNWARD if mode == ODD or _sees_both_sides(mode, flags) else _DIRECTIONS.get(mode)


def _sees_both_sides(mode: int, flags: int) -> bool:
    """Whether inexact sums are rounded to odd first: a format that flushes before rounding judges the exact sum, which the
    carrier's outward rounding may have lifted to the least normal number."""
    return mode in (UP, DOWN) and flags & CAREFUL != 0 and flags & EXACT_PRODUCTS != 0


def shows_overflow(mode: int, flags: int) -> bool:
    """Whether what is rounded above the limit stays above it.

    E * MAGIC overflows there. Toward zero it becomes the carrier's largest number; multiplied and added in two operations,
    that is taken away again and leaves 0.
    """
    return HAS_FMA or held_for(mode, flags) != INWARD


set_direction, restore_direction = direction_setters(held_for)


@inlined
def constants_of(row: Any) -> Any:
    """A row of constants, loaded into registers."""
    return (
        row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9], row[10], row[11], row[12], row[13],
    )  # fmt: skip


class Arithmetic:
    """Rounded operations for one carrier, mode and set of flags; `constants` are scalars already in registers.

    Where the processor rounds in directions, a directed mode rounds in the carrier, then to the format: rounding twice in
    one direction is rounding once. To odd, what a carrier loses is kept as an odd last bit. To nearest even a second
    rounding can be wrong only where the first gave a midpoint; then, elsewhere, and for stochastic rounding, the exact
    residual of an addition (Knuth's TwoSum) decides.
    """

    shows_leaves = False  # whether the leaves of a chain are looked at, so that they must be right by themselves

    def __init__(self, builder: Any, lanes: int, constants: list[Any], mode: int, flags: int):
        self.builder, self.mode, self.flags = builder, mode, flags
        self.by_bits = bool(flags & BY_BITS)
        self.constants = [splat(builder, scalar, lanes) for scalar in constants]
        self.careful = bool(flags & CAREFUL)
        self.exact_products = bool(flags & EXACT_PRODUCTS)
        self.format_is_carrier = bool(flags & FORMAT_IS_CARRIER)
        both = _sees_both_sides(mode, flags)
        self.direction = _DIRECTIONS.get(mode) if HAS_DIRECTIONS and not both else None
        self.toward: Any = operations(held_for(mode, flags), self[MINUS])
        nearest = mode in (NEAREST_EVEN, NEAREST_AWAY)
        # Nearest modes may round a sum of two values twice: the carrier has 2p + 2 bits.
        inexact = self.direction is None and (self.exact_products or not nearest)
        self.exact_sums = bool(flags & EXACT_SUMS)
        self.by_midpoints = inexact and mode == NEAREST_EVEN and HAS_FMA and not self.careful and lanes == 16
        self.to_odd = inexact and (mode == ODD or both) and HAS_DIRECTIONS
        self.by_residual = inexact and not (self.by_midpoints or self.to_odd or self.exact_sums)
        # Sums of values of the format are exact where they underflow, so that a zero that a sum from +0 shows is +0.
        self.keeps_zero_sign = self.careful or self.exact_products or mode == DOWN
        self.seen: list[Vector] = []

    def __getitem__(self, position: int) -> Vector:
        return self.constants[position]

    def leaf(self, left: Vector, right: Vector, draw: Vector | None) -> Vector:
        """The product, rounded unless leaves are exact."""
        if self.by_bits:
            fine, leaf = self._leaf_by_bits(left * right, draw)
            return unless_all(fine, leaf, lambda: self._in_double(Arithmetic.leaf, left, right, draw))
        product = left * right if self.direction is None else self.toward.times(left, right, self.direction)
        if self.exact_products or self.format_is_carrier:
            return product
        clamp = self.careful or bool(self.flags & CLAMP)
        return self.round(product, None, clamp, draw, bool(self.flags & TRACK))

    def chain(self, total: Vector, left: Vector, right: Vector, draws: tuple[Vector | None, Vector | None]) -> Vector:
        """total + left * right, as a step of a chain."""
        if self.by_bits and not self.shows_leaves:
            fine_leaf, leaf = self._leaf_by_bits(left * right, draws[0])
            fine, result = self._sum_by_bits(total, leaf, draws[1])

            def chain(double: Arithmetic, *terms: Vector) -> Vector:
                return double.chain(terms[0], terms[1], terms[2], (terms[3], terms[4]))

            return unless_all(
                together([fine_leaf, fine]), result, lambda: self._in_double(chain, total, left, right, *draws)
            )
        if not self.exact_products:
            return self.add(total, self.leaf(left, right, draws[0]), draws[1])
        if self.direction is not None:
            exact = self.toward.times_plus(left, right, total, self.direction)
            return exact if self.format_is_carrier else self.round(exact, None, True, draws[1])
        if self.format_is_carrier:
            return left.times_plus(right, total, fused=True)
        if self.by_midpoints:
            exact = left.times_plus(right, total, fused=True)

            def is_exact() -> Vector:
                left_again, right_again = left.again(), right.again()
                product = left_again * right_again
                lost = left_again.times_plus(right_again, product.negative(), fused=True)  # all, unless it underflows
                whole = product.absolute().compare(">=", 2.0**-100) & lost.compare("==", 0.0)
                return whole & sum_error(total, product).compare("==", 0.0)

            def chain(double: Arithmetic, *terms: Vector) -> Vector:
                return double.chain(terms[0], terms[1], terms[2], (None, None))

            return self._by_midpoints(exact, is_exact, lambda: self._in_double(chain, total, left.again(), right.again()))
        if self.to_odd:
            bounds = [self.toward.times_plus(left, right, total, way) for way in (INWARD, DOWNWARD, UPWARD)]
            return self.round(self._between(*bounds), None, True, draws[1])
        return self.add(total, left * right, draws[1])

    def add(self, left: Vector, right: Vector, draw: Vector | None, track: bool = True) -> Vector:
        """The rounded sum. Without exact products a sum below 2^emin is a multiple of the quantum: no clamp."""
        if self.by_bits:
            fine, result = self._sum_by_bits(left, right, draw)
            return unless_all(fine, result, lambda: self._in_double(Arithmetic.add, left, right, draw))
        clamp = self.careful or self.exact_products
        if self.direction is not None:
            total = self.toward.plus(left, right, self.direction)
        elif self.to_odd and not clamp:
            return self._odd_sum(left, right, track)
        elif self.to_odd and not self.format_is_carrier:
            total = self._between(*(self.toward.plus(left, right, way) for way in (INWARD, DOWNWARD, UPWARD)))
        else:
            total = left + right
        if self.format_is_carrier:
            return total
        if self.by_midpoints:
            return self._by_midpoints(
                total,
                lambda: sum_error(left, right).compare("==", 0.0),
                lambda: self._in_double(Arithmetic.add, left, right, None),
                track,
            )
        if not self.by_residual:
            return self.round(total, None, clamp, draw, track)
        residual = sum_error(left, right)
        if self.mode == DOWN:
            sign = SIGN[total.width]
            signs = ((left.ints() | right.ints()) & sign).floats()
            total = total.compare("==", 0.0).select(signs, total)
        return self.round(total, residual, clamp, draw, track)

    def _between(self, inward: Vector, lower: Vector, upper: Vector) -> Vector:
        """What lies between two neighbors, rounded to odd; an exact zero has the sign that its mode gives it."""
        between = odd_between(inward, lower, upper)
        return between.compare("==", 0.0).select(lower, between) if self.mode == DOWN else between

    def _by_midpoints(
        self, x: Vector, is_exact: Callable[[], Vector], otherwise: Callable[[], Vector], track: bool = True
    ) -> Vector:
        """What the carrier rounded to x, rounded to nearest even.

        Midpoints of the format are numbers of the carrier, so that what lies beside one stays on its side or becomes it.
        Only where x is a midpoint and not exact is the result what `otherwise` gives.
        """
        power = self._power(x, True, track)
        # Beside an odd number of ulps a tie goes the other way, to a place that is not the next one.
        even, odd = (power.times_plus(magic, x) for magic in (self[MAGIC], (self[MAGIC].ints() + 1).floats()))
        fine = (odd.ints() - even.ints()).compare("==", 1)
        result = power.times_plus(self[MAGIC].negative(), even).or_sign_of(x)
        return unless_all(fine, result, lambda: unless_all(fine | is_exact(), result, otherwise))

    def _dropped(self) -> Vector:
        """The bits of a significand that the format does not have."""
        one = {32: 0x3F800000, 64: 0x3FF0000000000000}[self[ULP].width]
        return (self[ULP] + 1.0).ints() - (one + 1)

    def _odd_sum(self, left: Vector, right: Vector, track: bool) -> Vector:
        """left + right rounded to odd, both values of the format; a sum below 2^emin has no bit to drop.

        Where the carrier loses something, one of the neighbors has its last bit set.
        """
        inward, lower, upper = (self.toward.plus(left, right, way).ints() for way in (INWARD, DOWNWARD, UPWARD))
        if track and self.flags & (TRACK | TRACK_SUMS):
            self.seen.append((inward & EXPONENT[inward.width]).floats())
        dropped = self._dropped()
        lost = (lower | upper) & dropped
        return ((inward | (lost + dropped)) & (dropped ^ -1)).floats()

    def _leaf_by_bits(self, product: Vector, draw: Vector | None) -> tuple[Vector, Vector]:
        """A mask of the lanes that are right, and a product (exact) rounded: right at zero and from 2^emin on."""
        if self.flags & TRACK:
            self.seen.append((product.ints() & EXPONENT[32]).floats())
        bits = product.ints()
        least = self[LOWEST].ints()
        fine = ((bits + bits) - 1).compare(">=", (least + least) - 1)
        return fine, self._climb_by_bits(bits, draw)[0].floats()

    def _sum_by_bits(self, left: Vector, right: Vector, draw: Vector | None) -> tuple[Vector, Vector]:
        """A mask of the lanes that are right, and left + right rounded.

        The sum truncated to float32 leaves a rest below its last place, which decides only where the bits dropped and the
        draw's first ones add up to one less than the next multiple.
        """
        total = self.toward.plus(left, right, INWARD)
        if self.flags & (TRACK | TRACK_SUMS):
            self.seen.append((total.ints() & EXPONENT[32]).floats())
        result, moved = self._climb_by_bits(total.ints(), draw)
        return ((moved + 1) & self._dropped()).compare("!=", 0), result.floats()

    def _climb_by_bits(self, bits: Vector, draw: Vector | None) -> tuple[Vector, Vector]:
        """A magnitude's bits plus the first bits of 2^32 - 1 - draw, truncated, and before."""
        assert draw is not None
        dropped = self._dropped()
        moved = bits + (draw >> ((self[ULP].ints() >> 23) ^ -1) + 137)
        return moved & (dropped ^ -1), moved

    def _in_double(self, operation: Callable[..., Vector], *operands: Any) -> Vector:
        """An operation as the float64 kernel does it, on either half of the lanes."""
        results = []
        double = copy(self)
        double.flags, double.seen = (self.flags & EXACT_PRODUCTS) | CLAMP, []
        double.by_bits, double.by_midpoints = False, False
        double.by_residual, double.exact_sums = self.by_midpoints, self.by_bits
        double.constants = [constant.part(0, 8).doubled() for constant in self.constants]
        double.constants[MAGIC] = double.constants[MAGIC] * 2.0**29
        if self.toward is not None:
            double.toward = operations(held_for(self.mode, self.flags), double[MINUS])
        for first in (0, 8):
            parts = [None if x is None else x.part(first, 8) for x in operands]
            wide = [None if x is None else x.doubled() if x.is_float else x.unsigned_to_double() for x in parts]
            results.append(operation(double, *wide).halved())
        return results[0].beside(results[1])

    def round(
        self, x: Vector, residual: Vector | None, clamp: bool, draw: Vector | None, track: bool = True
    ) -> Vector:
        """x + residual rounded once."""
        raw = x
        if residual is not None:
            x = to_odd(x, residual)
        power = self._power(x, clamp, track)
        if self.exact_sums:
            assert draw is not None
            power = power.with_sign_of(x)
            x = power.times_plus(draw * (self[ULP] * 2.0**-32), x)  # exact, as is said where the flag is set
            return power.times_plus(self[MAGIC].negative(), self.toward.times_plus(power, self[MAGIC], x, INWARD))
        if HAS_DIRECTIONS and self.mode not in (NEAREST_EVEN, STOCHASTIC):
            result = self._round_directed(x, power)
        else:
            shifted = power.times_plus(self[MAGIC], x)
            result = power.times_plus(self[MAGIC].negative(), shifted)
            if self.mode != NEAREST_EVEN:
                result = self._correct(x, result, power, shifted)
        if self.mode == STOCHASTIC:
            assert draw is not None
            result = self._climb(raw, residual, result, power, draw)
        if self.careful:
            return self._edges(x, result)
        if self.flags & OVERFLOWS:
            infinity = ((x.ints() & SIGN[x.width]) | EXPONENT[x.width]).floats()
            result = x.absolute().compare(">=", self[FIRST_INFINITE]).select(infinity, result)
        return result.with_sign_of(x) if self.keeps_zero_sign else result

    def _power(self, x: Vector, clamp: bool, track: bool) -> Vector:
        """The power of two that sets the last place at which |x| is rounded."""
        power = (x.ints() & EXPONENT[x.width]).floats()
        if clamp:
            power = larger_power(power, self[LOWEST])
        if track and self.flags & (TRACK | TRACK_SUMS):
            self.seen.append(power)
        return smaller(power, self[HIGHEST]) if self.careful else power

    def _round_directed(self, x: Vector, power: Vector) -> Vector:
        back = self[MAGIC].negative()
        if self.mode == ODD:
            # Both bounds are positive; where they differ one is odd, the lower one with its last bit set if that is even.
            low, high = (self.toward.times_plus(power, self[MAGIC], x, way) for way in (DOWNWARD, UPWARD))
            return power.times_plus(back, (low.ints() | (high.ints() & 1)).floats())
        if self.mode in (UP, DOWN):
            return power.times_plus(back, self.toward.times_plus(power, self[MAGIC], x, _DIRECTIONS[self.mode]))
        power = power.with_sign_of(x)
        if self.mode == NEAREST_AWAY:
            x = self.toward.times_plus(power, self[ULP] * 0.5, x, INWARD)  # half an ulp outward, then truncated
        return power.times_plus(back, self.toward.times_plus(power, self[MAGIC], x, INWARD))

    def _correct(self, x: Vector, result: Vector, power: Vector, shifted: Vector) -> Vector:
        ulp = power * self[ULP]
        if self.mode == UP:
            return result.compare("<", x).select(result + ulp, result)
        if self.mode == DOWN:
            return result.compare(">", x).select(result - ulp, result)
        if self.mode == ODD:
            moved = result + ulp.with_sign_of(x - result)
            even = (shifted.ints() & 1).compare("==", 0)
            moved = even.select(moved, result)  # c is an even number of ulps, so the last bit is the result's parity
            return result.compare("!=", x).select(moved, result)
        outward = ulp.with_sign_of(x)
        if self.mode == NEAREST_AWAY:
            tie = ((x - result) * 2.0).compare("==", outward)
            return tie.select(result + outward, result)
        return result.absolute().compare(">", x.absolute()).select(result - outward, result)

    def _climb(self, raw: Vector, residual: Vector | None, lower: Vector, power: Vector, draw: Vector) -> Vector:
        """The upper neighbor iff draw + 1 <= f * 2^32, given 2^32 - 1 - draw; every difference is exact."""
        quantum = power * self[ULP]
        upper = lower.absolute() + quantum
        magnitude = raw.absolute()
        beyond = magnitude.compare(">", self[MAX_FINITE])
        floor = lower.absolute()
        if self.careful:
            floor = beyond.select(self[MAX_FINITE], floor)
            quantum = beyond.select(self[TOP], quantum)
            upper = beyond.select(self[MAX_FINITE] + self[TOP], upper)
        distance = (magnitude - floor) - (quantum - draw * (quantum * 2.0**-32))
        if residual is not None:
            distance = distance + (residual.ints() ^ (raw.ints() & SIGN[raw.width])).floats()
        climbs = distance.compare(">=", 0.0)
        return climbs.select(upper, floor).with_sign_of(raw)

    def _edges(self, x: Vector, result: Vector) -> Vector:
        magnitude = result.absolute()
        positive = (x.ints() & SIGN[x.width]).compare("==", 0)
        overflowed = positive.select(self[OVERFLOW_POSITIVE], self[OVERFLOW_NEGATIVE])
        rounded = result.with_sign_of(x)
        zero = (x.ints() & SIGN[x.width]).floats()
        small = magnitude.compare("<", self[FLUSH_AFTER])
        rounded = small.select(zero, rounded)
        rounded = x.absolute().compare("<", self[FLUSH_BEFORE]).select(zero, rounded)
        rounded = magnitude.compare(">", self[MAX_FINITE]).select(overflowed, rounded)
        infinite = (x.ints() & (SIGN[x.width] - 1)).compare("==", EXPONENT[x.width])
        rounded = infinite.select(self[INFINITE].with_sign_of(x), rounded)
        return rounded.compare("==", 0.0).select((rounded.ints() & self[ZERO].ints()).floats(), rounded)


def sum_error(left: Vector, right: Vector) -> Vector:
    """left + right less the carrier's sum of them to nearest even: exact (Knuth's TwoSum)."""
    total = left + right
    back = total - left
    return (left - (total - back)) + (right - back)


def odd_between(inward: Vector, lower: Vector, upper: Vector) -> Vector:
    """What lies between two neighbors in the carrier, rounded to odd; `inward` is the one nearer to zero."""
    odd = (inward.ints() | 1).floats()
    return lower.compare("!=", upper).select(odd, inward)


def to_odd(x: Vector, residual: Vector) -> Vector:
    """The value that x + residual, |residual| at most half an ulp of x, becomes when rounded to odd in the carrier."""
    bits = x.ints()
    odd = (bits + (residual.ints() ^ bits).all_sign()) | 1
    return residual.compare("!=", 0.0).select(odd.floats(), x)
