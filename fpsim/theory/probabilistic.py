"""Bounds before the fact that hold with a stated probability.

The error of a tree of additions is the sum of its local errors. Where each has a mean of zero given all before it and lies in
an interval of width 2w around it, w = u * |what is rounded|, the sum over a node's subtree is a martingale, and Azuma's
inequality with sum w^2 <= H u^2 (1 + eta)^2 T^2 (the worst data put all of T under H roundings) gives

    |error| <= sqrt(2 ln(4/d)) sqrt(H) u (1 + eta) T        with probability 1 - d,

eta the relative error that no partial sum exceeds: with N roundings eta = c / (1 - c), c = sqrt(2 ln(4N/d)) sqrt(H) u, by the
union over all of them of the same inequality for the process stopped at the first that does; where c >= 1, or where it is less,
the growth (1 + v)^H - 1 of rounding at its worst. So nothing of higher order is left out.

Theorem for stochastic rounding: Connolly, Higham and Mary, SIAM J. Sci. Comput. 43, 2021, theorem 4.6, and El Arar, Sohier, de
Oliveira Castro and Petit, SIAM J. Sci. Comput. 45, 2023, with 32 random bits as here (El Arar, Fasi, Filip and Mikaitis,
arXiv 2408.03069): the bias of each draw, at most 2^-32 of 2u |what is rounded|, is added. For rounding to nearest it
is a model (Higham and Mary, SIAM J. Sci. Comput. 41, 2019; Ipsen and Zhou, SIAM J. Matrix Anal. Appl. 41, 2020): errors
independent of one another in the mean. It fails where sums stagnate: adding a constant, every rounding errs the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import inf, log, sqrt
from typing import Any

from fpsim.accumulation.accumulator import Accumulator, get_accumulator
from fpsim.accumulation.kinds import PARTS, TREE
from fpsim.accumulation.orders import parts_of, sequential
from fpsim.numbers.formats import Format, get_format
from fpsim.numbers.modes import Rounding, get_rounding
from fpsim.theory.accumulations import AccumulationBound, accumulation_bound
from fpsim.theory.deviations import BIAS, require_zero_mean
from fpsim.theory.roundings import NEAREST, addition_underflow, underflow_error
from fpsim.theory.trees import Leaves, leaves_of, roundings
from fpsim.theory.upward import to_float

_UP = 1 + 2.0**-40  # more than a few float64 operations and a logarithm lose


@dataclass(frozen=True)
class ProbabilisticBound(AccumulationBound):
    """An `AccumulationBound` that holds with probability `confidence`, for all outputs at once.

    `is_theorem` is False for rounding to nearest, where it rests on errors independent in the mean.
    """

    confidence: float = 1.0
    is_theorem: bool = True


@dataclass(frozen=True)
class _Roundings:
    """`height` roundings to a format between a term and the result, `count` in all."""

    format: Format
    height: int
    count: int
    underflow: Fraction


def probabilistic_bound(
    fmt: Any,
    accumulate: Any = None,
    terms: int = 1,
    rounding: Any = "stochastic",
    *,
    confidence: float = 0.999,
    outputs: int = 1,
    products: bool = True,
) -> ProbabilisticBound:
    """|accumulated - exact sum| <= relative * T + absolute with probability `confidence`, T = sum |a_i b_i|.

    Parameters
    ----------
    fmt, accumulate, terms, products : as for `accumulation_bound`; accumulators that are trees of additions.
    rounding : "stochastic", for which it is a theorem, or to nearest, for which it is a model that stagnating sums refute.
    confidence : of all `outputs` sums together (a union bound).

    Never larger than `accumulation_bound`; nothing overflows while T <= largest.
    Raises ValueError for a confidence outside (0, 1), directed modes and odd, and accumulators that are no trees.
    """
    target, accumulator, mode = get_format(fmt), get_accumulator(accumulate), get_rounding(rounding)
    require_zero_mean(mode)
    if not 0.0 < confidence < 1.0 or outputs < 1:
        raise ValueError(f"confidence lies between 0 and 1 and outputs is at least 1, got {confidence}, {outputs}")
    if accumulator.kind not in (TREE, PARTS):
        raise ValueError(f"accumulate = {str(accumulator)!r} is no tree of additions: it has no probabilistic bound")
    certain = accumulation_bound(target, accumulator, terms, mode, products=products)
    steps = _roundings_of(target, accumulator, terms, mode, products) if terms else []
    spread = sqrt(sum(step.height * step.format.unit_roundoff**2 for step in steps)) * _UP
    drift = 0.0
    if mode is Rounding.STOCHASTIC:
        drift = 2 * BIAS * sum(step.height * step.format.unit_roundoff for step in steps) * _UP
    failure = (1 - confidence) / outputs
    every = sqrt(2 * log(4 * max(1, sum(step.count for step in steps)) / failure)) * spread * _UP + drift
    growth = min(every / (1 - every) * _UP if every < 1 else inf, certain.relative)
    relative = min((sqrt(2 * log(4 / failure)) * spread * _UP + drift) * (1 + growth) * _UP, certain.relative)
    lost = to_float(sum((step.count * step.underflow for step in steps), Fraction(0)))
    absolute = min(lost * (1 + relative) * _UP, certain.absolute)
    return ProbabilisticBound(
        relative, absolute, certain.largest, certain.format, certain.zero_below, confidence, mode not in NEAREST
    )


def _roundings_of(fmt: Format, accumulator: Accumulator, terms: int, rounding: Rounding, products: bool) -> list[_Roundings]:
    held, wide = accumulator.format, accumulator.promoted
    leaves = leaves_of(fmt, held, accumulator.rounds_products, products)
    steps = [] if leaves.exact else [_Roundings(held, 1, terms, underflow_error(held, rounding))]
    if wide is None:
        tree = accumulator.order(terms)
        return [*steps, _tree_roundings(tree, held, rounding, leaves)]
    sizes = [count for _, count, _ in parts_of(accumulator.order, terms)]
    blocks = len(sizes)
    block = _tree_roundings(sequential(max(sizes)), held, rounding, leaves)
    steps.append(_Roundings(held, block.height, blocks * block.count, block.underflow))
    if accumulator.rounds_parts:
        steps.append(_Roundings(wide, 1, blocks, underflow_error(wide, rounding)))
    return [*steps, _Roundings(wide, blocks - 1, blocks, addition_underflow(wide, rounding, True))]


def _tree_roundings(tree: Any, held: Format, rounding: Rounding, leaves: Leaves) -> _Roundings:
    underflow = addition_underflow(held, rounding, leaves.grid)
    return _Roundings(held, roundings(tree, leaves.values), max(1, tree.nodes), underflow)
