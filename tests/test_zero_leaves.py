"""How many leaves vanish, against every product formed in float64."""

from __future__ import annotations

import numpy as np
import pytest

import fpsim
from fpsim.accumulation import get_accumulator
from fpsim.numbers.formats import get_format
from fpsim.numbers.rounding import Rounding
from fpsim.sums.observers.countable import vanishing
from fpsim.sums.observers.counting import _zero_leaves
from fpsim.sums.plan import plan
from fpsim.sums.task import Sum

MODES = [mode for mode in Rounding if mode is not Rounding.STOCHASTIC]


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["e4m3", "e5m2", "fp16"])
def test_zero_leaves_are_those_of_the_products(name: str, dtype: type, mode: Rounding) -> None:
    """e4m3 has few magnitudes, which are counted by value, and fp16 many."""
    fmt, generator = get_format(name), np.random.default_rng(7)
    for shape in ((1, 1, 1), (3, 5, 70), (40, 33, 17), (2, 40, 2)):
        rows, leaves, columns = shape
        a, b = (
            fpsim.round((generator.standard_normal(size) * 2.0 ** (fmt.emin / 2)).astype(dtype), fmt)
            for size in ((rows, leaves), (leaves, columns))
        )
        a[generator.random(a.shape) < 0.2] = 0
        b[generator.random(b.shape) < 0.2] = -0.0
        positive, negative = vanishing(plan(Sum.of(fmt, get_accumulator(name), mode), leaves))
        exact = a.astype(np.float64)[:, :, None] * b.astype(np.float64)
        vanish = (exact != 0) & np.where(exact > 0, exact <= positive, -exact <= negative)
        zeros, underflows = _zero_leaves(a[None], b[None], (positive, negative))
        assert underflows.tolist() == vanish.sum(axis=(0, 2)).tolist()
        assert zeros.tolist() == ((exact == 0) | vanish).sum(axis=(0, 2)).tolist()
