"""h u for trees of height h: without terms of higher order, and only as long as h is not too large.

Theorem. Additions are rounded to nearest (ties to whichever side), nothing overflows, no term meets more than h of them, and
(h + 1)^2 u <= 1. Then the errors of all additions together are at most h u sum |x_i|, whatever the terms.

Proof. For a node let A be the sum of |x_i| below it, D the sum of its own and all lower errors, k its height, r the exact
sum of its computed parts and q = ufp(r), 0 for r = 0. Its error is at most u q, and |r| <= A + (lower errors). Claim: with
the slack S = k u A - D and the deficit d = max(0, q - A),

    S >= u (h - k) d >= 0.                                                                                            (1)

Leaves have D = 0 and d = 0; the children of a node of height 1 are leaves and q <= |r| <= A, so that S >= u (A - q) >= 0 =
d. For a node of height k >= 2 let a and b be its parts, counted at height k - 1, which only adds to S_a and S_b. Then

    S >= S_a + S_b + u (A - q),    S_a >= u (A_a - q_a),    and the same of b,                                         (2)

where a leaf has q_a = ufp(x_a). If q <= A, (1) follows from (2). Else d = q - A > 0. By (1) lower errors are at most (k - 1)
u A, so that q <= (1 + t) A with t = (k - 1) u < 1/4. Call a part *over* if its own q_a > A_a; all q are powers of two, and
q_a <= |r_a| <= (1 + t) A_a < (1 + t) q, so q_a <= q.

(i) If d is at most the sum of the deficits of the parts that are over, (1) for these, with h - k + 1 for h - k, gives S >= u
(h - k + 1) d - u d = u (h - k) d.

(ii) Else some part wastes much: there is one that is not over with A_a - q_a >= A (1/4 - t), or both are not over and A_a -
q_a + A_b - q_b >= A (1/4 - t). Then by (2) and d <= t A

    S - u (h - k) d  >=  u A (1/4 - t) - u (h - k + 1) d  >=  u A (1/4 - (h - k + 2)(k - 1) u)  >=  0,

because (h - k + 2)(k - 1) <= ((h + 1) / 2)^2 and (h + 1)^2 u <= 1.

It is always (i) or (ii). *No part is over:* q_a <= A_a < q and q_b <= A_b < q are at most q/2, not both of them q/2 (A < q),
so q_a + q_b <= 3q/4 <= 3/4 (1 + t) A, which is (ii). *Both are over:* d = (q - q_a - q_b) + d_a + d_b. With q_a + q_b >= q
this is (i); else q_a + q_b <= 3q/4 as before, but A < q_a + q_b contradicts q <= (1 + t) A. *Only a is over:* with q_a = q,
d = q - A_a - A_b <= d_a, which is (i). With q_a = q/2 = q_b, A_b >= q/2 and d <= q/2 - A_a = d_a, (i). Otherwise A_a < q_a
<= q/2; if q_a = q/2, then q_b <= q/4 and A_b > A - q/2; if q_a <= q/4, then q_b <= q/2 and A_b > A - q/4: A_b - q_b > A -
3q/4 either way, which is (ii).

A single rounding of a leaf (a product) is a node with one part, for which q <= A: it counts as a level. Additions that
underflow are exact. Some condition of this order is needed: for p = 3, 4, ..., 8 trees of height 6, 8, 10, 13, 17, 23 exceed
h u if ties may go to either side, and with ties to even those of height 11, 13, 16, 19 for p = 3, ..., 6 (the lowest ones,
found by `tests/tree_search.py`). Lange and Rump (Math. Comp. 88, 2019) prove h u under a condition of their own.
"""

from __future__ import annotations

from fractions import Fraction

from fpsim.numbers.formats import Format
from fpsim.numbers.modes import Rounding
from fpsim.theory.roundings import unit

_ALWAYS = 3  # (1 + v)^3 - 1 <= 3 u for v = u / (1 + u)


def height_factor(height: int, fmt: Format, rounding: Rounding) -> Fraction | None:
    """h u of a mode that rounds to nearest; None where it is not proven."""
    u = unit(fmt, rounding)
    return height * u if height <= _ALWAYS or (height + 1) ** 2 * u <= 1 else None
