"""The oracles agree: integers that are fast, and rationals that are obvious."""

import numpy as np
import pytest

from tests import integer_oracle, oracles, sums_oracle
from tests.strategies import ALL_COMPUTING, DETERMINISTIC, clustered_values, defined, every_value, random_values


def test_rationals_know_the_edges():
    """Cases worked out by hand from the definitions."""
    import fpsim

    fp16, e4m3fn = fpsim.get_format("fp16"), fpsim.get_format("e4m3fn")
    mode = fpsim.Rounding
    assert oracles.round_float(65519.99, fp16, mode.NEAREST_EVEN) == 65504
    assert oracles.round_float(65520.0, fp16, mode.NEAREST_EVEN) == np.inf
    assert oracles.round_float(464.0, e4m3fn, mode.NEAREST_EVEN) == 448
    assert np.isnan(oracles.round_float(464.0, e4m3fn, mode.NEAREST_AWAY))
    assert oracles.round_float(1e9, e4m3fn, mode.ODD) == 448
    assert oracles.round_float(-1e-300, fp16, mode.ODD) == -(2.0**-24)
    assert oracles.stochastic(oracles.Fraction(3, 2**26), fp16) == (0.0, 2.0**-24, 3 * 2**30)
    assert oracles.operate("fma", (1.3017578125, -0.63916015625, -10.5625), fp16, mode.NEAREST_EVEN) == -11.3984375


@pytest.mark.parametrize("fmt", ALL_COMPUTING, ids=str)
def test_integers_agree_with_rationals(fmt):
    generator = np.random.default_rng(1)
    for name in integer_oracle.OPERATIONS:
        arity = {"round": 1, "sqrt": 1, "fma": 3}.get(name, 2)
        for mode in DETERMINISTIC:
            if not defined(fmt, mode):
                continue
            operands = [
                np.concatenate([random_values(fmt, 20, generator), clustered_values(fmt, 20, generator)]) for _ in range(arity)
            ]
            if name == "round":
                operands = [operands[0] * generator.random(40)]
                want = [oracles.round_float(float(x), fmt, mode) for x in operands[0]]
                sums = [sums_oracle.rounded(float(x), fmt, mode, x) for x in operands[0]]
                assert integer_oracle.mismatches(np.array(sums), np.array(want)) == 0, mode
            else:
                want = [oracles.operate(name, tuple(map(float, row)), fmt, mode) for row in zip(*operands, strict=True)]
            got = integer_oracle.results(name, operands, fmt, mode)
            assert integer_oracle.mismatches(got, np.array(want)) == 0, (name, mode)


def test_values_are_those_of_the_definition():
    """Enumerating significands and exponents gives what decoding every code gives."""
    for fmt in ALL_COMPUTING:
        if fmt.bits <= 10:
            p = fmt.precision
            subnormal = [n * 2.0 ** (fmt.emin - p + 1) for n in range(2 ** (p - 1))]
            normal = [
                n * 2.0 ** (e - p + 1) for e in range(fmt.emin, fmt.emax + 1) for n in range(2 ** (p - 1), 2**p)
            ]
            positive = [value for value in subnormal + normal if value <= fmt.max_finite]
            values = every_value(fmt)
            assert sorted(set(positive)) == sorted(set(np.abs(values[np.isfinite(values)]).tolist()))
