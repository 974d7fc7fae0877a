"""Trees of rounded additions: how often a term is rounded, and what that may do to a sum.

The local errors of additions add up: the sum's error is that of its leaves and the sum over all nodes of the error that the
node commits. So every bound here composes: stages of (relative, absolute), the later ones applied to the results of the
earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from fpsim.accumulation.heights import most_roundings
from fpsim.accumulation.trees import Tree
from fpsim.numbers.formats import Format
from fpsim.numbers.modes import Rounding
from fpsim.theory.roundings import (
    NEAREST,
    addition_underflow,
    holds,
    holds_products,
    multiples,
    relative_error,
    unit,
)
from fpsim.theory.upward import ZERO, both, grown, shortened


@dataclass(frozen=True)
class Stage:
    """One step of an accumulation: |result - sum of its terms| <= relative * (sum of their magnitudes) + absolute.

    `top` is the magnitude below which nothing in it overflows.
    """

    relative: Fraction
    absolute: Fraction
    top: float

    def then(self, later: Stage) -> Stage:
        """Both, the later one applied to the results of this one. Its terms' magnitudes have grown by 1 + relative."""
        grown_relative = shortened(both(self.relative, later.relative))
        absolute = shortened(self.absolute * (1 + later.relative) + later.absolute)
        return Stage(grown_relative, absolute, min(self.top, later.top))


@dataclass(frozen=True)
class Leaves:
    """What the terms of a sum are to an accumulator's format.

    exact   rounding a term to the format leaves it as it is (or none is made)
    values  the terms that are added are values of the format
    grid    they are multiples of its smallest subnormal number
    """

    exact: bool
    values: bool
    grid: bool


def leaves_of(operand: Format, held: Format, rounded: bool, products: bool) -> Leaves:
    """The leaves of sums of products of two values of `operand` (or of such values), rounded to `held` first or not."""
    fit = holds_products(held, operand) if products else holds(held, operand)
    grid = rounded or multiples(held, operand, products)
    return Leaves(exact=fit or not rounded, values=fit or rounded, grid=grid)


def leaf_stage(leaves: Leaves, operand: Format, held: Format, rounding: Rounding, count: int, products: bool) -> Stage:
    """The rounding of every leaf."""
    if leaves.exact or count == 0:
        return Stage(ZERO, ZERO, held.max_finite)
    return once(held, rounding, multiples(held, operand, products), count)


roundings = lru_cache(maxsize=256)(most_roundings)


def tree_stage(tree: Tree, held: Format, rounding: Rounding, leaves: Leaves) -> Stage:
    """The additions of a tree in one format.

    For a tree of height h: (1 + v)^h - 1, v the relative error of one rounding. To nearest, and where leaves are values and
    nothing is flushed, also (n - 1) u for n terms in any order and any number (Jeannerod and Rump, SIAM J. Matrix Anal.
    Appl. 34, 2013); the lesser of both.
    """
    relative = grown(relative_error(held, rounding), roundings(tree, leaves.values))
    underflow = addition_underflow(held, rounding, leaves.grid)
    if rounding in NEAREST and leaves.values and underflow == 0 and tree.is_binary:
        relative = min(relative, max(0, tree.leaves - 1) * unit(held, rounding))
    return Stage(relative, tree.nodes * underflow * (1 + relative), held.max_finite)


def chain_stage(count: int, held: Format, rounding: Rounding) -> Stage:
    """A chain of `count` terms that are values of the format, from +0 or from a value of it (then count + 1 terms)."""
    additions = max(0, count - 1)
    relative = grown(relative_error(held, rounding), additions)
    underflow = addition_underflow(held, rounding, True)
    if rounding in NEAREST and underflow == 0:
        relative = min(relative, additions * unit(held, rounding))
    return Stage(relative, count * underflow * (1 + relative), held.max_finite)


def once(held: Format, rounding: Rounding, on_grid: bool = False, count: int = 1) -> Stage:
    """`count` sums rounded once, each of terms of its own."""
    return Stage(relative_error(held, rounding), count * addition_underflow(held, rounding, on_grid), held.max_finite)
