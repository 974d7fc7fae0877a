"""Single factors c of bounds |computed - exact| <= c * (sum of magnitudes), without underflow: what textbooks print.

`accumulation_bound` composes them with underflow and overflow; these are for comparing and for teaching. All are rounded
upward, `inf` where they hold for nothing.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from fpsim.numbers.formats import get_format
from fpsim.numbers.modes import get_rounding
from fpsim.theory.compensated import kahan_stage, neumaier_stage
from fpsim.theory.heights import height_factor
from fpsim.theory.roundings import NEAREST, relative_error, unit
from fpsim.theory.upward import both, grown, to_float


def unit_roundoff(fmt: Any, rounding: Any = "nearest-even") -> float:
    """u = 2^-p to nearest, 2u = 2^(1-p) in directed modes, to odd and stochastically: the largest error over ufp.

    Holds for every number in the normal range (Higham, Accuracy and Stability of Numerical Algorithms, theorem 2.2).
    """
    return float(unit(get_format(fmt), get_rounding(rounding)))


def tree(height: int, fmt: Any, rounding: Any = "nearest-even") -> float:
    """(1 + v)^height - 1 for any tree in which no term meets more than `height` roundings; finite for every height.

    v = u / (1 + u) to nearest (Jeannerod and Rump, Math. Comp. 87, 2018), 2u / (1 + 2u) toward zero, else 2u. Without
    underflow and overflow, in any order and with fused multiply-adds.
    """
    return to_float(grown(relative_error(get_format(fmt), get_rounding(rounding)), _count(height, "height")))


def gamma(n: int, fmt: Any, rounding: Any = "nearest-even") -> float:
    """gamma_n = n u / (1 - n u), u as `unit_roundoff`; inf from n u = 1 on (Higham, lemma 3.1)."""
    total = _count(n, "n") * unit(get_format(fmt), get_rounding(rounding))
    return to_float(total / (1 - total)) if total < 1 else float("inf")


def jeannerod_rump(n: int, fmt: Any, rounding: Any = "nearest-even") -> float:
    """n u for inner products of n terms, (n - 1) u with n - 1 for sums, in any order and for every n.

    Rounding to nearest only, and without underflow of products (Jeannerod and Rump, SIAM J. Matrix Anal. Appl. 34, 2013).
    Directed modes violate it: raises ValueError for them.
    """
    target, mode = get_format(fmt), get_rounding(rounding)
    if mode not in NEAREST:
        raise ValueError(f'n u holds for rounding to nearest only, not for "{mode}"; use tree')
    return to_float(_count(n, "n") * unit(target, mode))


def lange_rump(height: int, fmt: Any, rounding: Any = "nearest-even") -> float:
    """h u for any tree in which no term meets more than h = `height` roundings, a product's included.

    Rounding to nearest only, without underflow of products, and for h <= 3 or (h + 1)^2 u <= 1: 44 levels in fp16, 15 in
    bf16, 4095 in fp32; inf beyond. After Lange and Rump, Math. Comp. 88, 2019; proven in `fpsim/theory/heights.py`, with
    trees that violate h u beyond. Raises ValueError for directed modes.
    """
    target, mode = get_format(fmt), get_rounding(rounding)
    if mode not in NEAREST:
        raise ValueError(f'h u holds for rounding to nearest only, not for "{mode}"; use tree')
    factor = height_factor(_count(height, "height"), target, mode)
    return float("inf") if factor is None else to_float(factor)


def kahan(n: int, fmt: Any, rounding: Any = "nearest-even") -> float:
    """3v + O(n v^2) for Kahan's sum of n values, the remainder included; inf where n v^2 is too large.

    See `fpsim/theory/compensated.py` for the proof, and for why it is not 2u.
    """
    return to_float(kahan_stage(_count(n, "n"), get_format(fmt), get_rounding(rounding)).relative)


def neumaier(n: int, fmt: Any, rounding: Any = "nearest-even") -> float:
    """v + (1 + v)((1 + v)^(n-1) - 1)^2 for Neumaier's sum of n values, in every mode; to nearest less, of the same order.

    After Ogita, Rump and Oishi, SIAM J. Sci. Comput. 26, 2005, proposition 4.5.
    """
    return to_float(neumaier_stage(_count(n, "n"), get_format(fmt), get_rounding(rounding)).relative)


def block_fma(n: int, block: int, fraction: int, output: Any = "fp32", rounding: Any = "toward-zero") -> float:
    """((1 + (N + 1) 2^-F)(1 + v))^ceil(n/N) - 1 for n products through truncating blocks of N = `block` terms.

    F = `fraction` bits are kept below the largest exponent, then the block's sum is rounded to `output`. Without subnormal
    operands, whose exponents count as the least; `accumulation_bound` takes those in.
    """
    lost = Fraction(_count(block, "block") + 1, 2 ** _count(fraction, "fraction"))
    step = both(lost, relative_error(get_format(output), get_rounding(rounding)))
    return to_float(grown(step, -(-_count(n, "n") // max(1, block))))


def _count(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a whole number of at least 0, got {value!r}")
    return value
