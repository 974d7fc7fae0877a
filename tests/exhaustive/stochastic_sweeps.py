"""Sweeps of stochastic rounding: the draws next to the exact probability, and decisions by the exact result."""

from fractions import Fraction

import numpy as np

import fpsim
from fpsim.numbers.rounding import Rounding, rounding_constants
from tests import generators, integer_oracle, oracles
from tests.draws import decide_operation, draws_of, round_with
from tests.exhaustive.sweep import Result, sweep, total
from tests.strategies import COMPUTING, VARIANTS, fits_float32

SECTION = "Stochastic rounding"
NUMBERS = 6000


def decisive_draws(fmt, dtype, seed):
    """Of all 2^32 draws those below floor(f * 2^32) round up: the last of them, and the first that does not."""
    row = rounding_constants(fmt, Rounding.STOCHASTIC, np.dtype(dtype))
    if row is None:
        return Result(0, 0)
    generator = np.random.default_rng(seed)
    (values,) = generators.operands("sqrt", fmt, NUMBERS, seed, np.float64)
    with np.errstate(over="ignore"):
        numbers = (values * (1 + generator.random(NUMBERS) * 2.0 ** -generator.integers(0, 40, NUMBERS))).astype(dtype)
    numbers = numbers[np.isfinite(numbers) & (numbers != 0)]
    lower, upper, threshold = zip(*(oracles.stochastic(Fraction(float(x)), fmt) for x in numbers), strict=True)
    threshold = np.array(threshold)
    found = Result(0, 0)
    for draw, expected in ((threshold - 1, upper), (threshold, lower)):
        kept = draw >= 0
        out = np.empty(int(kept.sum()), dtype)
        round_with(numbers[kept], draw[kept].astype(np.uint32 if dtype is np.float32 else np.int64), row, out)
        found += Result(out.size, integer_oracle.differing(out, np.array(expected)[kept].astype(dtype)))
    return found


@sweep(SECTION, "every format to 24 bits and both carriers: the two draws next to the exact probability", "exact rationals")
def thresholds():
    formats = COMPUTING + VARIANTS
    tasks = [(fmt, np.float64, seed) for seed, fmt in enumerate(formats)]
    tasks += [(fmt, np.float32, seed) for seed, fmt in enumerate(formats) if fits_float32(fmt)]
    return total(decisive_draws, tasks)


def decisions(fmt, name, count, seed):
    """Element i goes the way that its draw and the exact result say."""
    dtype = np.float32 if fits_float32(fmt) else np.float64
    operands = generators.operands(name, fmt, count, seed, dtype)
    draws = draws_of(seed, count)
    got = getattr(fpsim, name)(*operands, fmt, "stochastic", seed=seed)
    want = [decide_operation(name, row, fmt, draw) for row, draw in zip(zip(*operands, strict=True), draws, strict=True)]
    return Result(count, integer_oracle.differing(got, np.array(want, dtype)))


@sweep(SECTION, "every format to 24 bits: add, sub, mul, div, sqrt, fma decide as the exact result says", "exact rationals")
def operations():
    cases = [(fmt, name) for fmt in COMPUTING + VARIANTS for name in ("add", "sub", "mul", "div", "sqrt", "fma")]
    return total(decisions, [(fmt, name, 4000, seed) for seed, (fmt, name) in enumerate(cases)])
