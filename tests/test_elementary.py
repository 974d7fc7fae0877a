"""Elementary functions: correct rounding where it is claimed, accuracy elsewhere, special values, refusals."""

import math

import numpy as np
import pytest
import torch

import fpsim
from fpsim.arrays import elementary
from tests import integer_oracle
from tests.elementary_reference import ODD_AT_ZERO, REFERENCE, pairs, round_pairs
from tests.strategies import NAMED, clustered_values, every_value

FP32 = fpsim.get_format("fp32")
LISTED = [fmt for fmt in NAMED if fmt.precision <= 11 and fmt.has_zero]


def same(got, want):
    return integer_oracle.mismatches(*(np.ravel(np.asarray(x, np.float64)) for x in (got, want))) == 0


def test_the_reference_covers_every_function():
    assert set(REFERENCE) == set(elementary.NAMES)


@pytest.mark.parametrize("name", REFERENCE)
def test_correctly_rounded_up_to_11_bits(name):
    for fmt in LISTED:
        values = every_value(fmt)
        values = values if values.size < 300 else values[:: values.size // 60]
        high, low = pairs(name, values)
        for mode in ("nearest-even", "nearest-away"):
            want, distance = round_pairs(high, low, fmt, away=mode == "nearest-away")
            assert same(getattr(elementary, name)(values, fmt, mode), want), (fmt, mode)
            assert (distance[distance > 0] > 2.0**-30).all()


@pytest.mark.parametrize("name", REFERENCE)
def test_fp32_within_half_an_ulp_and_2_to_the_minus_20(name):
    generator = np.random.default_rng(17)
    values = np.concatenate([clustered_values(FP32, 60, generator), generator.normal(size=60).astype(np.float32)])
    values = values.astype(np.float32)
    high, low = pairs(name, values)
    got = getattr(elementary, name)(values, FP32).astype(np.float64)
    finite = np.isfinite(high) & (np.abs(high) < FP32.max_finite)
    error = np.abs(got[finite] - high[finite] - low[finite]) / fpsim.ulp(high[finite], FP32)
    assert (error <= 0.5 + 2.0**-20).all()
    assert same(np.isnan(got), np.isnan(high))


@pytest.mark.parametrize("name", REFERENCE)
def test_special_values(name):
    _, _, at_minus, at_plus = REFERENCE[name]
    function = getattr(elementary, name)
    assert math.isnan(function(math.nan, "fp16"))
    assert same(function(math.inf, "fp16"), fpsim.round(at_plus, "fp16"))
    assert same(function(-math.inf, "fp16"), fpsim.round(at_minus, "fp16"))
    if name in ODD_AT_ZERO:
        assert same(function(-0.0, "fp16"), -0.0) and same(function(0.0, "fp16"), 0.0)


def test_exact_results_on_midpoints():
    """17 is a midpoint of e4m3fn; a float64 value a little beside it would round up."""
    e5m2 = fpsim.get_format("e5m2")
    assert elementary.log2(2.0**9, e5m2) == fpsim.round(9.0, e5m2)
    assert elementary.log2(2.0**-13, e5m2) == fpsim.round(-13.0, e5m2)
    for power in range(-24, 16):
        assert elementary.exp2(float(power), fpsim.get_format("bf16")) == 2.0**power
    assert elementary.log10(1000.0, "fp16") == 3 and elementary.log10(10000.0, "fp16") == 4


def test_kinds_of_arguments():
    x = torch.linspace(0, 1, 8).half()
    assert elementary.exp(x, "fp16").dtype == torch.float16
    assert type(elementary.exp(0.5, "fp16")) is float
    y = np.linspace(0, 1, 9, dtype=np.float32).reshape(3, 3)
    assert elementary.tanh(y.T, "fp32").shape == (3, 3)
    out = np.empty_like(y)
    assert elementary.tanh(y, "fp32", out=out) is out and same(out, elementary.tanh(y, "fp32"))
    assert elementary.exp(np.empty((0, 2)), "fp16").shape == (0, 2)
    daz = fpsim.get_format("fp16").replace(flush_inputs=True)
    assert same(elementary.sin(-(2.0**-20), daz), -0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: elementary.exp(1.0, "fp16", "up"), "to nearest only"),
        (lambda: elementary.exp(1.0, "fp16", "stochastic"), "to nearest only"),
        (lambda: elementary.exp(1.0, "fp64"), "at most 24 bits"),
        (lambda: elementary.exp(1.0, "e8m0fnu"), "no zero"),
        (lambda: elementary.exp(0.1, "fp16"), "no value"),
        (lambda: elementary.exp(np.ones(2, np.float16), "bf16"), "cannot hold"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
