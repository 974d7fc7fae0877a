"""Kahan's and Neumaier's compensated summation, with every term of higher order bounded.

Both take n terms that are values of the format. Every operation is x(1 + d) + e with |d| <= v and |e| at most the underflow
error, which is 0 unless subnormals are flushed: sums of values are exact below 2^emin.
"""

from __future__ import annotations

from fractions import Fraction

from fpsim.numbers.formats import Format
from fpsim.numbers.modes import Rounding
from fpsim.theory.roundings import NEAREST, addition_underflow, relative_error, unit
from fpsim.theory.trees import Stage
from fpsim.theory.upward import ONE, ZERO, grown, shortened

_ROUNDS = 400
_NONE = Fraction(2) ** 5000  # no bound: beyond float64 after any factor


def kahan_stage(count: int, held: Format, rounding: Rounding) -> Stage:
    """Kahan's summation: 3v + O(n v^2), the remainder included; no bound (inf) where n v^2 is too large for one.

    With y = (p - c)(1 + d1), s' = s + y + r, z = (s' - s)(1 + d3), c' = (z - y)(1 + d4), s' - c' differs from s - c + p by at
    most v (|p - c| + |y + r| + |z - y|), and the last s from the last s - c by r. The largest |s|, |c| and error are
    the least solution of the inequalities that this gives, found by iteration and then checked.
    The first-order term agrees with Hallman and Ipsen (arXiv 2203.15928), not with the 2u of Knuth and Goldberg
    (ACM Comput. Surv. 23, 1991, theorem 8), whose proof drops the last r.
    """
    v, top = relative_error(held, rounding), held.max_finite / 4
    if count < 2:
        return Stage(ZERO, ZERO, top)
    relative = _kahan(count - 1, v, ONE, ZERO)
    underflow = addition_underflow(held, rounding, True)
    absolute = _kahan(count - 1, v, ZERO, underflow) if underflow else ZERO
    return Stage(relative, absolute, top)


def _kahan(steps: int, v: Fraction, total: Fraction, e: Fraction) -> Fraction:
    """The error of s after `steps` additions to a first term, all of them of magnitudes that add up to `total`."""

    def largest(s: Fraction, c: Fraction) -> tuple[Fraction, Fraction, Fraction]:
        """The largest |s|, |c| and |s - sum| that follow from these."""
        y = (1 + v) * (total + c) + e
        r = v * (s + y) + e
        difference = r + v * (y + r) + e
        lost = (1 + v) * difference + e
        all_y = (1 + v) * (total + steps * c) + steps * e
        all_r = v * (steps * s + all_y) + steps * e
        all_differences = (1 + v) * all_r + v * all_y + steps * e
        drift = v * (total + steps * c + all_y + all_r + all_differences) + 3 * steps * e
        return shortened(total + drift + lost), shortened(lost), shortened(drift + r)

    slack = 1 + Fraction(1, 10**9)
    s, c = total, ZERO
    for _ in range(_ROUNDS):
        next_s, next_c, error = largest(s, c)
        if next_s <= s and next_c <= c:
            return error
        s, c = shortened(next_s * slack), shortened(next_c * slack)
        if s > (total + steps * e) * 2**20:
            break
    return _NONE


def neumaier_stage(count: int, held: Format, rounding: Rounding) -> Stage:
    """Neumaier's summation: v + (1 + v)((1 + v)^(n-1) - 1)^2, and what flushing adds.

    The larger operand less the rounded sum is exact in every mode that rounds to a neighbor: the sum lies between that
    operand's half and its double or is itself exact (Sterbenz). So every error of s is added to c with one more
    rounding (exactly to nearest), their magnitudes add up to ((1 + v)^(n-1) - 1) sum|p|, and c's own additions do to them what
    a chain does. Second order: Ogita, Rump and Oishi, SIAM J. Sci. Comput. 26, 2005, proposition 4.5. To nearest a partial
    sum of k terms is at most 1 + (k - 1) u times their magnitudes, and a chain of n - 1 terms errs by (n - 2) u.
    """
    v, top = relative_error(held, rounding), held.max_finite / 4
    if count < 2:
        return Stage(ZERO, ZERO, top)
    growth, e = grown(v, count - 1), addition_underflow(held, rounding, True)
    if rounding in NEAREST and e == 0:
        u, steps = unit(held, rounding), count - 1
        errors = min(growth, v * (steps + u * steps * (steps - 1) / 2))
        missed = errors * min(growth, (steps - 1) * u)
        return Stage(shortened(v + (1 + v) * missed), ZERO, top)
    corrections = growth * count * e + count * e  # what flushing adds to the sum of the errors' magnitudes
    missed = growth * corrections + 3 * count * e * (1 + growth)
    return Stage(shortened(v + (1 + v) * growth * growth), shortened((1 + v) * missed + e), top)
