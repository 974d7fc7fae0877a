"""Overflows and underflows of emulated sums and products, against exact rationals: whatever shows of them in the result."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import fpsim
from fpsim.numbers.formats import get_format
from fpsim.numbers.names import get_system

SATURATING = get_format("e4m3fn").replace(name="saturating", saturate=True)
SYSTEMS = {"fp16": "fp16", "e4m3fn": "e4m3fn", "saturating": SATURATING, "fixed(8,4)": "fixed(8,4)"}


def dot(row, column):
    return sum(Fraction(x) * Fraction(y) for x, y in zip(row, column, strict=True))


def dots(a, b):
    return [[dot(row, column) for column in b.T.tolist()] for row in a.tolist()]


COMPUTED = {
    "mm": (lambda a, b: a @ b, dots),
    "bmm": (lambda a, b: a[None] @ b[None], dots),
    "sum": (lambda a, b: a.sum(1), lambda a, b: [dot(row, [1] * 4) for row in a.tolist()]),
    "mean": (lambda a, b: a.mean(1), lambda a, b: [dot(row, [1] * 4) / 4 for row in a.tolist()]),
}


def operands(system):
    """Rows whose sums and products overflow, do not, cancel, and underflow: float32 holds all of their sums."""
    large, small = 2.0 ** np.floor(np.log2(system.max_finite)), system.enclosing.min_subnormal
    a = torch.tensor([[large] * 4, [large, -large, 0.5, 0.25], [small, 0.0, 0.0, 0.0], [0.0] * 4], dtype=torch.float32)
    return a, torch.tensor([[1.0, 0.5], [1.0, 0.25], [1.0, 0.25], [0.5, 0.0]])


#: Fixed point accumulates exactly; of an exact mean it is the sum that is rounded first, and then the quotient.
CASES = [
    (operation, name, accumulate)
    for operation in COMPUTED
    for name in SYSTEMS
    for accumulate in ("fp32", "exact", "fp32:blocked(2)")
    if (name != "fixed(8,4)" or accumulate == "exact") and (operation, accumulate) != ("mean", "exact")
]


@pytest.mark.parametrize(("operation", "name", "accumulate"), CASES)
def test_what_a_sums_rounding_does_is_counted(operation, name, accumulate):
    system = get_system(SYSTEMS[name])
    (compute, exact), (a, b) = COMPUTED[operation], operands(system)
    with fpsim.emulate(fmt=SYSTEMS[name], accumulate=accumulate) as emulation:
        compute(a, b)
    total, values = emulation.report().total, np.ravel(exact(a, b))
    limit, least = Fraction(system.max_finite), Fraction(system.enclosing.min_subnormal)
    wanted = sum(abs(value) > limit for value in values), sum(0 < abs(value) <= least / 2 for value in values)
    assert (total.overflows, total.underflows) == wanted and any(wanted)
