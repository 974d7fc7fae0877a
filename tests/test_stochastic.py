"""Stochastic rounding: exact probabilities from chosen draws, exact decisions from known ones, and a count of many."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

import fpsim
from fpsim.numbers import operations
from fpsim.numbers.rounding import Rounding, rounding_constants
from tests import integer_oracle, oracles
from tests.draws import decide, decide_operation, draws_of, round_with
from tests.strategies import (
    ALL_COMPUTING,
    NAMED,
    VARIANTS,
    clustered_values,
    every_value,
    fits_float32,
    random_values,
)

SIGNED = [fmt for fmt in NAMED if fmt.has_zero and fmt.precision <= 24] + VARIANTS
ARITY = {"add": 2, "sub": 2, "mul": 2, "div": 2, "sqrt": 1, "fma": 3}


def same(got, want):
    return integer_oracle.mismatches(*(np.ravel(np.asarray(x, np.float64)) for x in (got, want))) == 0


def between(fmt, dtype, generator):
    """Numbers all over a format's range, inside it, above it and below, as `dtype`."""
    values = np.concatenate([clustered_values(fmt, 150, generator), random_values(fmt, 150, generator)])
    values = values[np.isfinite(values)]
    spread = np.ldexp(generator.random(values.size), generator.integers(-40, 2, values.size))
    ends = [fmt.min_subnormal * spread, fmt.max_finite * (1 + spread / 8)]
    with np.errstate(over="ignore"):
        return np.concatenate([values, values * (1 + spread), values * (1 - spread), *ends]).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fmt", SIGNED, ids=str)
def test_the_draw_that_decides_is_the_exact_probability(fmt, dtype):
    """Of all 2^32 draws those below floor(f * 2^32) round up: the last of them does, the next one does not."""
    row = rounding_constants(fmt, Rounding.STOCHASTIC, np.dtype(dtype))
    if row is None or (dtype is np.float32 and not fits_float32(fmt)):
        pytest.skip("no kernel for this carrier")
    numbers = between(fmt, dtype, np.random.default_rng(9))
    numbers = numbers[np.isfinite(numbers) & (numbers != 0)]
    lower, upper, threshold = zip(*(oracles.stochastic(Fraction(float(x)), fmt) for x in numbers), strict=True)
    threshold = np.array(threshold)
    for draw, expected in (
        (threshold - 1, np.where(threshold > 0, upper, lower)),
        (threshold, lower),
        (np.zeros_like(threshold), np.where(threshold > 0, upper, lower)),
        (np.full_like(threshold, 2**32 - 1), lower),
    ):
        kept = (draw >= 0) & (draw < 2**32)
        out = np.empty(int(kept.sum()), dtype)
        typed = draw[kept].astype(np.uint32 if dtype is np.float32 else np.int64)
        round_with(numbers[kept], typed, row, out)
        assert same(out, np.array(expected)[kept])


@pytest.mark.parametrize("fmt", [fmt for fmt in SIGNED if fmt.bits <= 8][:6], ids=str)
def test_equally_spaced_draws_count_the_probability(fmt):
    """2^16 equally spaced draws round up floor(f * 2^16) times, for f a multiple of 2^-16."""
    row = rounding_constants(fmt, Rounding.STOCHASTIC, np.dtype(np.float64))
    values = every_value(fmt)
    positive = np.unique(values[np.isfinite(values) & (values > 0)])
    generator = np.random.default_rng(10)
    for low, high in list(pairwise(positive))[::7]:
        share = int(generator.integers(0, 2**16))
        x = low + (high - low) * share / 2**16
        draws = np.arange(2**16, dtype=np.int64) << 16
        out = np.empty(2**16)
        round_with(np.full(2**16, x), draws, row, out)
        lower, upper, threshold = oracles.stochastic(Fraction(x), fmt)
        assert int((out == upper).sum() if upper != lower else 0) == -(-threshold >> 16)


@pytest.mark.parametrize("fmt", [fmt for fmt in SIGNED if fits_float32(fmt)], ids=str)
def test_round_decides_by_the_draw_of_its_element(fmt):
    generator = np.random.default_rng(11)
    for dtype in (np.float32, np.float64):
        x = between(fmt, dtype, generator)
        draws = draws_of(12, x.size)
        want = [
            decide(Fraction(float(v)), fmt, d) if np.isfinite(v) and v else oracles.round_float(float(v), fmt, None)
            for v, d in zip(x, draws, strict=True)
        ]
        assert same(fpsim.round(x, fmt, "stochastic", seed=12), np.array(want))


@pytest.mark.parametrize("fmt", ALL_COMPUTING, ids=str)
def test_arithmetic_decides_by_the_exact_result(fmt):
    generator = np.random.default_rng(13)
    draws = draws_of(14, 400)
    for name, arity in ARITY.items():
        operands = [
            np.concatenate([random_values(fmt, 200, generator), clustered_values(fmt, 200, generator)]) for _ in range(arity)
        ]
        got = getattr(fpsim, name)(*operands, fmt, "stochastic", seed=14)
        want = [decide_operation(name, row, fmt, draw) for row, draw in zip(zip(*operands, strict=True), draws, strict=True)]
        assert same(got, np.array(want)), name


@pytest.mark.parametrize("fmt", [fmt for fmt in ALL_COMPUTING if fmt.precision > 20], ids=str)
def test_what_truncation_leaves_is_counted_exactly(fmt):
    """Above 20 bits float64 cannot hold 2^-32 ulp: truncated result and count together give floor(f * 2^32)."""
    generator = np.random.default_rng(15)
    row = rounding_constants(fmt, Rounding.STOCHASTIC, np.dtype(np.float64))
    for name, arity in ARITY.items():
        if name == "sub":
            continue
        operands = [
            np.concatenate([clustered_values(fmt, 300, generator), near_one(fmt, 300, generator)]) for _ in range(arity)
        ]
        padded = operands + [operands[-1]] * (3 - arity)
        bits, counts = operations.truncated(name, tuple(padded), fmt)
        rows = zip(*operands, strict=True)
        exact = [oracles.EXACT[name](*(oracles.operand(float(x), fmt) for x in row)) for row in rows]
        kept = np.array([isinstance(result, tuple) and result[0] != 0 for result in exact])
        finite = [result[0] for result, keep in zip(exact, kept, strict=True) if keep]
        lower, upper, threshold = zip(*(oracles.stochastic(x, fmt) for x in finite), strict=True)
        threshold = np.array(threshold)
        inner = threshold > 0
        for draw, expected in ((threshold - 1, upper), (threshold, lower)):
            out = np.empty(int(inner.sum()))
            round_with(bits[kept].view(np.float64)[inner], (draw - counts[kept])[inner], row, out)
            assert same(out, np.array(expected)[inner]), name
        if fmt.name == "fp32" and name in ("add", "div", "fma"):
            assert counts.max() == 7 and (np.bincount(counts) > 0).all()


def near_one(fmt, count, generator):
    """Values whose sums and products have bits far below the format's, of both signs."""
    significands = generator.integers(2 ** (fmt.precision - 1), 2**fmt.precision, count).astype(np.float64)
    exponents = generator.integers(-fmt.precision - 34, 2, count) * generator.integers(0, 2, count)
    values = np.ldexp(significands, np.maximum(exponents, fmt.emin) - fmt.precision + 1)
    return values * generator.choice([-1.0, 1.0], count)


@pytest.mark.parametrize("name", ["fp16", "fp32", "e4m3fn"])
def test_many_draws_come_close_to_the_probability(name):
    """Binomial, with a fixed seed: within 4 standard deviations."""
    fmt, count = fpsim.get_format(name), 200_000
    for share in (0.5, 0.1, 2.0**-6):
        x = 1 + share * float(fpsim.ulp(1.0, fmt))
        got = fpsim.round(np.full(count, x), fmt, "stochastic", seed=16)
        ups = int((got > 1).sum())
        assert abs(ups - count * share) < 4 * math.sqrt(count * share * (1 - share))


def test_draws_do_not_depend_on_shape_or_kind():
    def rounded(x, seed=1):
        return fpsim.round(x, "e5m2", "stochastic", seed=seed)

    x = np.linspace(0, 1, 3000, dtype=np.float32)
    assert same(rounded(x.reshape(50, 60)), rounded(x))
    assert same(rounded(x.reshape(60, 50).T), rounded(x.reshape(60, 50).T.copy()))
    assert not same(rounded(x, seed=2), rounded(x))
    a, b = fpsim.round(x, "fp16"), fpsim.round(x[::-1], "fp16")[:100, None]
    full = [np.ascontiguousarray(part) for part in np.broadcast_arrays(a, b)]
    assert same(fpsim.add(a, b, "fp16", "stochastic", seed=3), fpsim.add(*full, "fp16", "stochastic", seed=3))


def test_values_never_move():
    for fmt in SIGNED:
        if fmt.bits <= 16 and fmt.flush is None:
            values = every_value(fmt)
            want = fpsim.round(values, fmt)
            assert same(fpsim.round(values, fmt, "stochastic", seed=4), want)
