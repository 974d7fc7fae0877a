"""How wrong sums of products can be: error bounds before the fact, for every accumulator, mode and format.

    accumulation_bound     for any accumulator and number of terms: relative, absolute, and when nothing overflows
    rounding_bound         for one rounding
    matmul                 for given operands, element by element
    probabilistic_bound    smaller, and true with a stated probability
    tree, gamma, jeannerod_rump, lange_rump, kahan, neumaier, block_fma, unit_roundoff    the factors of the literature

Every number is rounded outward, and `inf` where nothing holds. Bounds after the fact, from the partial sums that were made,
come with the results: ``fpsim.matmul(..., error_bound=True)``.
"""

from fpsim.theory.accumulations import AccumulationBound, accumulation_bound
from fpsim.theory.closed_forms import (
    block_fma,
    gamma,
    jeannerod_rump,
    kahan,
    lange_rump,
    neumaier,
    tree,
    unit_roundoff,
)
from fpsim.theory.probabilistic import ProbabilisticBound, probabilistic_bound
from fpsim.theory.products import matmul
from fpsim.theory.roundings import RoundingBound, rounding_bound

__all__ = [
    "AccumulationBound",
    "ProbabilisticBound",
    "RoundingBound",
    "accumulation_bound",
    "block_fma",
    "gamma",
    "jeannerod_rump",
    "kahan",
    "lange_rump",
    "matmul",
    "neumaier",
    "probabilistic_bound",
    "rounding_bound",
    "tree",
    "unit_roundoff",
]
