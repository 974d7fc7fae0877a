"""Integers and fixed-point numbers against rationals: every code, every neighbor, midpoints, and products of all pairs."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, strategies as st

import fpsim
from fpsim.cli import main
from fpsim.numbers.fixed_point import FIXED, FixedPoint
from fpsim.numbers.rounding import Rounding
from tests.frequency import often

SMALL = ("int4", "uint4", "int8", "uint8", "fixed(8,4)", "fixed(5,7)", "fixed(6,-3)", "ufixed(5,2)", "fixed(2,0)")
DETERMINISTIC = [mode for mode in Rounding if mode is not Rounding.STOCHASTIC]


def counts_of(system):
    """The integers that codes stand for: two's complement, or unsigned."""
    bits = system.bits
    return range(-(2 ** (bits - 1)), 2 ** (bits - 1)) if system.signed else range(2**bits)


def rounded(value, system, mode):
    """The value, a Fraction, as an integer multiple of the quantum, by the definition of the mode."""
    scaled = value * Fraction(2) ** system.fraction
    low = math.floor(scaled)
    rest = scaled - low
    nearest_up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2 == 1)
    away = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and scaled > 0)
    upward = {
        Rounding.NEAREST_EVEN: nearest_up,
        Rounding.NEAREST_AWAY: away,
        Rounding.TOWARD_ZERO: rest > 0 and scaled < 0,
        Rounding.UP: rest > 0,
        Rounding.DOWN: False,
        Rounding.ODD: rest > 0 and low % 2 == 0,
    }[mode]
    counts = counts_of(system)
    return min(max(low + upward, counts[0]), counts[-1]) * Fraction(1, 2) ** system.fraction


@pytest.mark.parametrize("name", SMALL)
def test_codes_values_and_neighbors(name):
    system = fpsim.get_system(name)
    codes = np.arange(2**system.bits, dtype=np.uint64)
    values = fpsim.decode(codes, name)
    wanted = [count * 2.0**-system.fraction for count in counts_of(system)]
    assert sorted(values.tolist()) == wanted
    assert np.array_equal(fpsim.encode(values, name), codes) and not np.signbit(values[values == 0]).any()
    assert fpsim.round(np.array(wanted), name).tolist() == wanted
    assert fpsim.next_up(np.array(wanted), name).tolist() == wanted[1:] + wanted[-1:]
    assert fpsim.next_down(np.array(wanted), name).tolist() == wanted[:1] + wanted[:-1]
    assert (fpsim.ulp(np.array(wanted), name) == 2.0**-system.fraction).all()
    assert (system.max_finite, system.min_finite) == (wanted[-1], wanted[0])


@pytest.mark.parametrize("mode", DETERMINISTIC, ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_rounding_at_values_midpoints_and_beyond(name, mode):
    system = fpsim.get_system(name)
    step = Fraction(1, 2) ** system.fraction
    points = [count * step + offset * step for count in counts_of(system) for offset in (0, Fraction(1, 2))]
    points += [points[0] - step, points[-1] + 3 * step, Fraction(2) ** 300, -(Fraction(2) ** 300), Fraction(1, 2**900)]
    numbers = np.array([float(point) for point in points])
    numbers = np.concatenate([numbers, np.nextafter(numbers, np.inf), np.nextafter(numbers, -np.inf)])
    wanted = [float(rounded(Fraction(x), system, mode)) for x in numbers.tolist()]
    got = fpsim.round(numbers, name, mode)
    assert got.tolist() == wanted and not np.signbit(got[got == 0]).any()
    with np.errstate(over="ignore"):
        single = numbers.astype(np.float32)
    finite = np.isfinite(single)
    assert fpsim.round(single[finite], name, mode).tolist() == [
        float(rounded(Fraction(float(x)), system, mode)) for x in single[finite]
    ]


@pytest.mark.parametrize("name", SMALL)
def test_what_is_no_number_saturates_or_stays(name):
    system = fpsim.get_system(name)
    got = fpsim.round(np.array([np.inf, -np.inf, np.nan, -0.0]), name)
    assert got[:2].tolist() == [system.max_finite, system.min_finite] and np.isnan(got[2]) and not np.signbit(got[3])
    with pytest.raises(ValueError, match="holds a NaN, for which"):
        fpsim.encode(np.nan, name)


@pytest.mark.parametrize("mode", DETERMINISTIC, ids=str)
@pytest.mark.parametrize("name", ["int4", "ufixed(5,2)", "fixed(5,7)"])
def test_operations_on_all_pairs(name, mode):
    system = fpsim.get_system(name)
    values = [Fraction(count) / Fraction(2) ** system.fraction for count in counts_of(system)]
    pairs = list(itertools.product(values, values))
    a, b = (np.array([float(pair[i]) for pair in pairs]) for i in (0, 1))
    exact = {"add": [x + y for x, y in pairs], "sub": [x - y for x, y in pairs], "mul": [x * y for x, y in pairs]}
    for operation, wanted in exact.items():
        got = getattr(fpsim, operation)(a, b, name, mode)
        assert got.tolist() == [float(rounded(value, system, mode)) for value in wanted], operation
    got = fpsim.fma(a, b, a, name, mode)
    assert got.tolist() == [float(rounded(x * y + x, system, mode)) for x, y in pairs]


@pytest.mark.parametrize("accumulate", ["exact", "fp32", "fp64"])
@pytest.mark.parametrize("mode", often(["nearest-even", "up", "odd"], ["nearest-even", "up"]))
def test_sums_of_products_are_exact_and_rounded_once(mode, accumulate):
    if accumulate == "fp64" and mode != "nearest-even":
        pytest.skip("fp64 computes in nearest-even only")
    generator, system = np.random.default_rng(0), fpsim.get_system("fixed(8,4)")
    a, b = (generator.integers(-128, 128, shape) / 16 for shape in ((5, 30), (30, 7)))
    exact = (a * 16).astype(int) @ (b * 16).astype(int)  # 2^-8 each; float32 holds 24 bits
    wanted = [[float(rounded(Fraction(int(x), 256), system, Rounding(mode))) for x in row] for row in exact]
    assert fpsim.matmul(a, b, fmt="fixed(8,4)", accumulate=accumulate, rounding=mode).tolist() == wanted
    sums = [float(rounded(Fraction(int(x), 16), system, Rounding(mode))) for x in (a * 16).astype(int).sum(axis=1)]
    assert fpsim.sum(a, 1, fmt="fixed(8,4)", accumulate=accumulate, rounding=mode).tolist() == sums


def test_counters_see_what_saturates():
    counters = fpsim.Counters()
    fpsim.matmul(np.full((1, 3), 100.0), np.full((3, 2), 1.0), fmt="int8", accumulate="fp32", counters=counters)
    assert counters.overflows == 2


def test_stochastic_rounding_has_the_probabilities_it_states():
    count = 40_000
    for value in (0.25, -0.25, 3.0 + 1 / 3, 126.5):
        got = fpsim.round(np.full(count, value), "int8", "stochastic", seed=3)
        up = np.mean(got > value) if value > 0 else np.mean(got < value)
        share = abs(value) - math.floor(abs(value))
        assert set(np.abs(got)) == {math.floor(abs(value)), math.floor(abs(value)) + 1}
        assert abs(up - share) < 5 * math.sqrt(share * (1 - share) / count)
    again = fpsim.round(np.full(count, 0.25), "int8", "stochastic", seed=3)
    assert np.array_equal(again[:100], fpsim.round(np.full(100, 0.25), "int8", "stochastic", seed=3))


@given(st.integers(2, 32), st.integers(-20, 40), st.booleans(), st.fractions(-(2**34), 2**34), st.sampled_from(DETERMINISTIC))
def test_any_width_rounds_by_the_definition(width, fraction, signed, value, mode):
    system = FixedPoint("any", width, fraction, signed)
    number = float(value)
    out = np.empty(1)
    system.round_into(np.array([number]), out, mode)
    assert out[0] == float(rounded(Fraction(number), system, mode))
    assert system.decode(system.encode(out))[0] == out[0]


@pytest.mark.parametrize("name", [*SMALL, *FIXED])
def test_the_enclosing_format_holds_every_value(name):
    system = fpsim.get_system(name)
    generator = np.random.default_rng(0)
    some = generator.integers(system.least, system.largest + 1, 200)
    values = np.append(some, [system.least, system.largest, 1]) * system.quantum
    assert np.array_equal(fpsim.round(values, system.enclosing), values)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: fpsim.matmul(x, x, fmt="int8", accumulate="int8"), "int8 holds no sums of rounded additions"),
        (lambda x: fpsim.div(x, x, "int8"), "int8 has no rule for division by zero; it has add, sub, mul, fma"),
        (lambda x: fpsim.sqrt(x, "uint8"), "uint8 has no rule for roots"),
        (lambda x: fpsim.exp(x, "fixed(8,4)"), r"fixed\(8,4\) has no elementary functions"),
        (lambda x: fpsim.mul(x, x, "int32"), "int32 has no products here: they take at most 24 bits"),
        (lambda x: fpsim.matmul(x, x, fmt="int8", error_bound=True), "int8 has no error bounds"),
        (lambda x: fpsim.add(x / 2, x, "int8"), r"a\[0, 0\] = 0.5 is no value of int8; round it"),
        (lambda x: fpsim.round(x, "fixed(40,2)"), r"fixed\(40,2\): fixed-point numbers have 2 to 32 bits"),
        (lambda x: fpsim.round(x, "int9"), r"unknown format 'int9'.*int4, int8, .*fixed\(bits, fraction\)"),
        (lambda x: fpsim.matmul(x, x, fmt="int8", accumulate="h100"), "unit h100 has no instruction for values of int8"),
    ],
)
def test_what_it_cannot_do_is_refused_with_what_it_can(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((2, 2)))


def test_explain_shows_the_bits():
    result = CliRunner().invoke(main, ["explain", "--fmt", "fixed(8,4)", "--", "-3.14"])
    assert result.exit_code == 0, result.output
    for text in ("1 100 1110", "0xce", "-3.125", "-3.0625"):
        assert text in result.output
