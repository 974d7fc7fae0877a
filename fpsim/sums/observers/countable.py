"""What kernels can count of a sum: how much, up to which magnitudes, and what has to be found otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fpsim.backend.numba.counted import EVERYTHING, MOST_LEAVES, SUMS
from fpsim.backend.numba.sums_rounding import CAREFUL, FORMAT_IS_CARRIER
from fpsim.numbers.computing import is_float64
from fpsim.numbers.rounding import Rounding
from fpsim.sums.observers.tally import Tally
from fpsim.sums.plan import Plan


def countable(planned: Plan, largest: float) -> Plan:
    """The plan of a kernel that can count products up to a magnitude."""
    scheme, task = planned.scheme, planned.task
    # A leaf's overflow that is finite.
    hides = bool(scheme.flags & FORMAT_IS_CARRIER) and task.rounding is not Rounding.NEAREST_EVEN
    is_hidden = hides and not (planned.tree.is_chains and largest < task.target.max_finite)
    if is_hidden or (scheme.element == "f4" and planned.leaves > MOST_LEAVES):
        return replace(planned, scheme=planned.careful.scheme)
    return planned


def observed(planned: Plan, extents: tuple[float, float]) -> int:
    """What a kernel observes: sums alone where that tells everything, given the extents of the products."""
    task, largest = planned.task, extents[0]
    simple = task.rounding is not Rounding.STOCHASTIC and not planned.scheme.flags & CAREFUL
    if is_float64(task.target):  # which the careful kernel does not serve: nothing may overflow, and every product is exact
        simple = simple and 2 * task.operand.precision <= 53 and largest * (planned.leaves + 1) < 2.0**1000
    tells = simple and largest < np.inf and (underflows_only_in_leaves(planned, extents[1]) or planned.tree.is_chains)
    return SUMS if tells else EVERYTHING


def underflows_only_in_leaves(planned: Plan, smallest: float) -> bool:
    """Exact products that the carrier holds are multiples of its smallest number, so that no sum of them underflows."""
    return not planned.task.exact_products or bool(planned.scheme.flags & FORMAT_IS_CARRIER and smallest > 2.0**-100)


def are_alone(planned: Plan, extents: tuple[float, float], counters: Tally) -> bool:
    """Whether swamped additions alone are asked for, and no sum overflows."""
    return not counters.is_whole and planned.growth * planned.leaves * extents[0] < least_unseen(planned)


def may_be_seldom(planned: Plan, extents: tuple[float, float]) -> bool:
    """Whether `SeldomSwampedJob` is for such sums."""
    return planned.is_float32_chains and underflows_only_in_leaves(planned, extents[1])


def least_unseen(planned: Plan) -> float:
    """Where nothing is watched, an overflow shows in what it gives: below which every magnitude is then."""
    return planned.task.target.max_finite if planned.scheme.flags & FORMAT_IS_CARRIER else np.inf


def vanishing(planned: Plan) -> tuple[float, float]:
    """Up to which magnitude a positive product becomes zero, and a negative one."""
    if planned.task.exact_products:
        return 0.0, 0.0
    quantum, rounding = planned.task.target.min_subnormal, planned.task.rounding
    below = float(np.nextafter(quantum, 0.0))
    match rounding:
        case Rounding.NEAREST_EVEN:
            return quantum / 2, quantum / 2
        case Rounding.NEAREST_AWAY:
            return below / 2, below / 2
        case Rounding.TOWARD_ZERO:
            return below, below
        case Rounding.UP:
            return 0.0, below
        case Rounding.DOWN:
            return below, 0.0
    return 0.0, 0.0  # to odd: the smallest number
