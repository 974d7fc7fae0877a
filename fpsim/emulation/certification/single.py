"""Products of bounds in float32, rounded outward: long ones take half the time that float64 takes.

A float32 sum of n products errs by at most (n + 2) 2^-24 of its magnitudes (any order, with or without fused products), and
by 2^-150 for each number that underflows; operands that were float64 before err by 2^-24 of themselves or of 2^-126. NNPACK's
convolutions by Winograd and Fourier transforms have no such bound, and are switched off.
"""

from __future__ import annotations

import math

import torch

from fpsim.emulation.certification.table import Products

#: From how many terms on bounds are multiplied in float32, and up to how many what is known with its sign is.
SINGLE_FROM, SINGLE_TO = 32, 1024
UNIT, LEAST = 2.0**-23, 2.0**-126  # of float32
_ROOM = 48  # thousands of products of numbers below 2^48 do not overflow


def product_above(sums: Products, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A bound of multiply(a, b) from above, for a, b >= 0 in float64."""
    (left, first), (right, second) = _fitted(a), _fitted(b)
    product = multiplied(sums, left, right).double().mul_(1 + (sums.terms + 16) * UNIT).add_(sums.terms * 2.0**-148)
    return product if first == second == 1 else product.mul_(first).mul_(second)


def _fitted(t: torch.Tensor) -> tuple[torch.Tensor, float]:
    """In float32 with no number too small, and the power of two that large ones were divided by."""
    largest = float(t.max()) if t.numel() else 0.0
    scale = 2.0 ** max(0, math.frexp(largest)[1] - _ROOM) if largest < math.inf else 1.0
    return (t if scale == 1 else t / scale).float().clamp_(min=LEAST), scale


def product_near(sums: Products, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """multiply(a, b), and a bound on what it is off by, in a shape that broadcasts: of sums of |a| |b|, by the largest |a|."""
    return multiplied(sums, a.float(), b.float()).double(), near_rest(sums, a, b)


def near_rest(sums: Products, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What a float32 product of a and b, given in float64 or exactly in float32, is off by; it broadcasts to its shape."""
    assert sums.reach is not None
    largest, total = (part.double() for part in sums.reach(a, b))
    share = (sums.terms + 16) * UNIT * (1 + 2 * (sums.terms + 16) * torch.finfo(b.dtype).eps)
    return (largest + LEAST) * (total + sums.terms * LEAST) * share + sums.terms * 2.0**-147


def multiplied(sums: Products, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """sums.multiply of float32 tensors, by an algorithm whose error is bounded."""
    if sums.single is not None:
        return sums.single(a, b)
    with torch.backends.nnpack.flags(enabled=False):
        return sums.multiply(a, b)
