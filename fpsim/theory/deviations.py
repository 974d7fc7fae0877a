"""How far a sum of rounding errors of mean zero strays: Hoeffding's inequality, normalized by what was observed.

Let e_1, e_2 ... be errors whose means, given everything before, are zero, and that lie in intervals of width 2 w_i which
are known before e_i is (w_i = u * ufp of what is rounded). Then exp(t sum e_i - t^2 V / 2), V = sum w_i^2, is a supermartingale
for every t (Hoeffding, J. Amer. Statist. Assoc. 58, 1963, lemma 1), so that with probability 1 - d

    sum e_i <= ln(1/d) / t + t V / 2.

V is known only afterwards and t must be chosen before. So a grid of t serves, one for each factor 4 that V may span, each with
its share of d (de la Pena, Ann. Probab. 27, 1999, for such bounds; the grid is plain peeling). It costs 27 % over
sqrt(2 ln(2/d) V), which would hold for V known beforehand.

Stochastic rounding makes such errors, but for a bias of at most 2^-32 of 2u * ufp that is added: a theorem, given that the
draws are independent and uniform (Connolly, Higham and Mary, SIAM J. Sci. Comput. 43, 2021). Rounding to nearest does not:
that its errors have conditional means of zero is a model (Higham and Mary, SIAM J. Sci. Comput. 42, 2020), false where a sum
stagnates. Directed rounding and odd have no such model.
"""

from __future__ import annotations

from math import ceil, log, log2
from typing import Any

import numpy as np

from fpsim.numbers.computing import quantum_exponent
from fpsim.numbers.formats import Format
from fpsim.numbers.modes import Rounding
from fpsim.theory.powers import inflated
from fpsim.theory.roundings import NEAREST

#: Stochastic rounding takes the upper neighbor with a probability that is too small by less than this.
BIAS = 2.0**-32


def require_zero_mean(rounding: Rounding) -> None:
    """Raise ValueError for modes whose errors have no mean of zero, not even as a model."""
    if rounding not in NEAREST and rounding is not Rounding.STOCHASTIC:
        raise ValueError(
            f'rounding = "{rounding}" errs to one side: its errors have no probabilistic bound; '
            "use error_bound=True, or rounding to nearest or stochastic"
        )


def confidence_of(error_bound: Any) -> float | None:
    """What `error_bound=` asks for: None for a bound that always holds (True), or its probability.

    Raises ValueError for what is neither True nor a number between 0 and 1.
    """
    if error_bound is True:
        return None
    if isinstance(error_bound, bool) or not isinstance(error_bound, float) or not 0.0 < error_bound < 1.0:
        raise ValueError(f"error_bound is False, True or a probability such as 0.999, got {error_bound!r}")
    return error_bound


def deviation(stages: list[tuple[Format, np.ndarray]], rounding: Rounding, count: int, confidence: float) -> np.ndarray:
    """A bound of |sum of errors| that holds with probability `confidence` for each element.

    `stages` are formats and sums of ufp^2 over the roundings to them, `count` roundings at most in all. Few errors do not
    exceed the bound that always holds, which is at most sqrt(count * V) times one or two (Cauchy and Schwarz).
    """
    # Half the width of the interval of an error over ufp: u to nearest, and half of 2u for a draw of either neighbor.
    squares = sum((fmt.unit_roundoff**2 * kept for fmt, kept in stages), np.zeros(()))
    # Every rounding of a nonzero number to a format has 2^quantum <= ufp <= 2^emax.
    lowest = min(2.0 * (quantum_exponent(fmt) - fmt.precision) for fmt, _ in stages)
    highest = max(2.0 * (fmt.emax - fmt.precision) for fmt, _ in stages) + log2(count)
    cells = ceil((highest - lowest) / 2) + 2
    share = log(2 * cells / (1 - confidence))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        cell = np.clip(np.floor((np.log2(squares) - lowest) / 2), 0, cells - 1)
        center = np.exp2(2 * cell + lowest + 1)
        bound = (np.sqrt(share * center / 2) + squares * np.sqrt(share / (2 * center))) * (1 + 2.0**-40)
        widths = np.sqrt(count * squares) * (1 + 2.0**-40)  # at least sum w_i
        if rounding is Rounding.STOCHASTIC:
            bound = np.minimum(bound + 2 * BIAS * widths, 2 * widths)
        else:
            bound = np.minimum(bound, widths)
    return inflated(bound, 8)
