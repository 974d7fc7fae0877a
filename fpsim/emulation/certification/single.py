"""Products of bounds in float32, rounded outward: long ones take half the time that float64 takes.

A float32 sum of n products errs by at most (n + 2) 2^-24 of its magnitudes (any order, with or without fused products), and
by 2^-150 for each number that underflows; operands that were float64 before err by 2^-24 of themselves or of 2^-126. NNPACK's
convolutions by Winograd and Fourier transforms have no such bound, and are switched off.
"""

from __future__ import annotations

import torch

from fpsim.emulation.certification.slopes import EPSILON
from fpsim.emulation.certification.table import Products

#: From how many terms on bounds are multiplied in float32, and up to how many what is known with its sign is.
SINGLE_FROM, SINGLE_TO = 32, 1024
_UNIT, _LEAST = 2.0**-23, 2.0**-126


def product_above(sums: Products, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A bound of multiply(a, b) from above, for a, b >= 0 in float64."""
    found = _multiplied(sums, a.float().clamp_(min=_LEAST), b.float().clamp_(min=_LEAST))
    return found.mul_(1 + (sums.terms + 16) * _UNIT).add_(sums.terms * 2.0**-148)


def product_near(sums: Products, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """multiply(a, b), and a bound on what it is off by, in a shape that broadcasts: of sums of |a| |b|, by the largest |a|."""
    assert sums.reach is not None
    largest, total = sums.reach(a, b)
    share = (sums.terms + 16) * _UNIT * (1 + 2 * (sums.terms + 16) * EPSILON)
    rest = (largest + _LEAST) * (total + sums.terms * _LEAST) * share + sums.terms * 2.0**-147
    return _multiplied(sums, a.float(), b.float()), rest


def _multiplied(sums: Products, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    with torch.backends.nnpack.flags(enabled=False):
        return sums.multiply(a, b).double()
