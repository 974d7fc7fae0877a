"""Error bounds over everything: all triples of a tiny format, and every accumulator in every mode."""

from fractions import Fraction as F
from math import inf

import numpy as np
import pytest

import fpsim
from fpsim import bounds
from fpsim.accumulation import get_accumulator
from fpsim.numbers.formats import Format, get_format
from fpsim.numbers.rounding import Rounding
from tests.hard_sums import KINDS, exact_sums
from tests.strategies import MODES, every_value
from tests.test_bounds import CASES, made, unconfirmed

pytestmark = pytest.mark.exhaustive

TINY = Format("tiny", precision=3, emin=-2, emax=4)
VARIANTS = [TINY, TINY.replace(name="tiny flushed", flush="after"), TINY.replace(name="tiny flushed before", flush="before"),
            TINY.replace(name="tiny saturating", saturate=True), TINY.replace(name="tiny fn", specials="fn")]  # fmt: skip
FEW_MODES = (Rounding.NEAREST_EVEN, Rounding.DOWN, Rounding.ODD)
ORDERS = ("sequential", "pairwise", "kahan", "neumaier")


def accumulator_of(fmt, order):
    if order in ("kahan", "neumaier"):
        return fpsim.Accumulator(kind=order, format=fmt)
    return fpsim.Accumulator(format=fmt, order=order)


@pytest.mark.parametrize(
    ("fmt", "mode"),
    [(fmt, mode) for fmt in VARIANTS for mode in (MODES if fmt is TINY else FEW_MODES)],
    ids=str,
)
def test_all_triples_of_a_tiny_format(fmt, mode):
    values = every_value(TINY)
    values = values[np.isfinite(values) & (np.abs(values) <= fmt.max_finite)]
    values = values[(np.abs(values) >= fmt.min_subnormal) | (values == 0)]
    x = np.stack(np.meshgrid(values, values, values, indexing="ij"), axis=-1).reshape(-1, 3)
    exact, sizes = x.sum(axis=1), np.abs(x).sum(axis=1)  # exact in float64
    seed = 1 if mode is fpsim.Rounding.STOCHASTIC else None
    for order in ORDERS:
        accumulator = accumulator_of(fmt, order)
        how = {"fmt": fmt, "accumulate": accumulator, "rounding": mode, "seed": seed}
        result, running = fpsim.sum(x, 1, error_bound=True, **how)
        error = np.abs(result - exact)
        assert np.all((error <= running) | (running == inf)), order
        assert np.isfinite(running).mean() > 0.5
        bound = bounds.accumulation_bound(fmt, accumulator, 3, mode, products=False)
        kept = sizes <= bound.largest
        assert np.isfinite(result[kept]).all() and np.all(error[kept] <= bound.error(sizes[kept])), order


@unconfirmed
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("operand, accumulate", CASES)
def test_every_accumulator_in_every_mode(operand, accumulate, mode):
    fmt, accumulator = get_format(operand), get_accumulator(accumulate)
    if accumulator.kind in ("unit", "native") and mode is not fpsim.Rounding.NEAREST_EVEN:
        pytest.skip("rounds in its own way")
    for kind in KINDS:
        for terms, seed in ((5, 1), (64, 2)):
            a, b, (result, running) = made(fmt, accumulator, mode.value, kind, terms, seed, error_bound=True)
            bound = bounds.accumulation_bound(fmt, accumulator, terms, mode)
            zeroed = [np.where(np.abs(x) < bound.zero_below, 0, x) for x in (a, b)]
            for (i, j, total, _), (*_, counted, size) in zip(exact_sums(a, b), exact_sums(*zeroed), strict=True):
                assert running[i, j] == inf or abs(F(float(result[i, j])) - total) <= F(float(running[i, j]))
                store = bounds.rounding_bound(fmt, mode, held=bound.format)
                if bound.relative < inf and size <= F(bound.largest):
                    error = F(bound.relative) * size + F(bound.absolute)
                    if abs(counted) + error <= F(store.largest):
                        error += F(store.relative) * (abs(counted) + error) + F(store.absolute)
                        assert abs(F(float(result[i, j])) - counted) <= error
