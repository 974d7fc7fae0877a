"""add, sub, mul, div, sqrt and fma against the oracles, their special values, and what they refuse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import fpsim
from fpsim.numbers import operations
from fpsim.numbers.rounding import Rounding
from tests import integer_oracle, oracles
from tests.strategies import (
    ALL_COMPUTING,
    DETERMINISTIC,
    clustered_values,
    defined,
    every_value,
    fits_float32,
    modes,
    random_values,
)

OPERATIONS = {"add": 2, "sub": 2, "mul": 2, "div": 2, "sqrt": 1, "fma": 3}


def same(got, want):
    return integer_oracle.mismatches(*(np.ravel(np.asarray(x, np.float64)) for x in (got, want))) == 0


@pytest.mark.parametrize("fmt", ALL_COMPUTING, ids=str)
def test_every_operation_in_every_mode(fmt):
    generator = np.random.default_rng(4)
    carriers = [np.float64, np.float32] if fits_float32(fmt) else [np.float64]
    for name, arity in OPERATIONS.items():
        operands = [
            np.concatenate([random_values(fmt, 4000, generator), clustered_values(fmt, 4000, generator)]) for _ in range(arity)
        ]
        for mode in DETERMINISTIC:
            if defined(fmt, mode):
                want = integer_oracle.results(name, operands, fmt, mode)
                for dtype in carriers:
                    got = getattr(fpsim, name)(*(x.astype(dtype) for x in operands), fmt, mode)
                    assert got.dtype == dtype
                    assert same(got, want), (name, mode, dtype)


@pytest.mark.parametrize("fmt", [fmt for fmt in ALL_COMPUTING if fmt.bits <= 6], ids=str)
def test_all_operands_of_tiny_formats_against_rationals(fmt):
    """fma included: all pairs and triples of the 4-bit format, of every third value of the 6-bit ones."""
    values = every_value(fmt) if fmt.bits <= 4 else every_value(fmt)[::3]
    for name, arity in OPERATIONS.items():
        operands = [np.ravel(axis) for axis in np.meshgrid(*[values] * arity, indexing="ij")]
        for mode in DETERMINISTIC:
            if defined(fmt, mode) and (arity < 3 or mode in (Rounding.NEAREST_EVEN, Rounding.DOWN)):
                want = [oracles.operate(name, tuple(map(float, row)), fmt, mode) for row in zip(*operands, strict=True)]
                assert same(getattr(fpsim, name)(*operands, fmt, mode), np.array(want)), (name, mode)


def test_the_float32_carrier_is_only_a_shorter_way():
    """Where float32's result serves, the way through float64 gives the same bits."""
    generator = np.random.default_rng(5)
    served = [fmt for fmt in ALL_COMPUTING if operations.float32_serves(fmt, Rounding.NEAREST_EVEN)]
    assert {"fp16", "bf16", "float8_e5m2", "float8_e4m3fn"} <= {fmt.name for fmt in served}
    assert not {"tf32", "fp32", "e8m9"} & {fmt.name for fmt in served}
    for fmt in served:
        a, b = (clustered_values(fmt, 200_000, generator, np.float32) for _ in range(2))
        for function in (fpsim.add, fpsim.sub, fpsim.mul, fpsim.div):
            wide = function(a.astype(np.float64), b.astype(np.float64), fmt)
            assert same(function(a, b, fmt), wide), (fmt, function)


def test_products_of_tf32_near_underflow_are_rounded_once():
    fmt, generator = fpsim.get_format("tf32"), np.random.default_rng(6)
    significands = generator.integers(2**10, 2**11, (2, 100_000)).astype(np.float64)
    a = np.ldexp(significands[0], -74).astype(np.float32)
    b = np.ldexp(significands[1], generator.integers(-82, -72, 100_000)).astype(np.float32)
    want = integer_oracle.results("mul", [a, b], fmt, Rounding.NEAREST_EVEN)
    assert same(fpsim.mul(a, b, fmt), want)
    through_float32 = fpsim.round(a * b, fmt)
    assert not same(through_float32, want)  # why float32 is no carrier for it


def test_fma_is_not_a_rounded_float32_fma():
    assert fpsim.fma(1.3017578125, -0.63916015625, -10.5625, "fp16") == -11.3984375


@pytest.mark.parametrize("mode", DETERMINISTIC, ids=str)
def test_special_values(mode):
    """IEEE 754-2019, sections 6 and 7, in each mode."""
    inf, nan = np.inf, np.nan
    cancelled = -0.0 if mode is Rounding.DOWN else 0.0
    cases = [
        ("add", (1.5, -1.5), cancelled),
        ("sub", (1.5, 1.5), cancelled),
        ("add", (0.0, -0.0), cancelled),
        ("add", (-0.0, -0.0), -0.0),
        ("sub", (-0.0, 0.0), -0.0),
        ("sub", (inf, inf), nan),
        ("add", (inf, -192.0), inf),
        ("mul", (0.0, inf), nan),
        ("mul", (-0.0, 3.0), -0.0),
        ("mul", (-inf, -2.0), inf),
        ("div", (0.0, 0.0), nan),
        ("div", (inf, inf), nan),
        ("div", (-1.0, 0.0), -inf),
        ("div", (1.0, -0.0), -inf),
        ("div", (1.0, -inf), -0.0),
        ("sqrt", (-0.0,), -0.0),
        ("sqrt", (-1.0,), nan),
        ("sqrt", (inf,), inf),
        ("fma", (2.0, 3.0, -6.0), cancelled),
        ("fma", (0.0, -1.0, 0.0), cancelled),
        ("fma", (0.0, -1.0, -0.0), -0.0),
        ("fma", (0.0, inf, nan), nan),
        ("fma", (0.0, inf, 1.0), nan),
        ("fma", (1.0, inf, -inf), nan),
        ("fma", (2.0, 3.0, -inf), -inf),
    ]
    for name, operands, want in cases:
        for fmt in ("fp16", "bf16", "fp32", "tf32"):
            assert same(getattr(fpsim, name)(*operands, fmt, mode), want), (name, operands, fmt)


def test_division_by_zero_where_there_is_no_infinity():
    assert np.isnan(fpsim.div(1.0, 0.0, "e4m3fn"))
    assert np.isnan(fpsim.div(1.0, 0.0, "e4m3fnuz"))
    assert fpsim.div(-1.0, 0.0, "float4_e2m1fn") == -6
    saturating = fpsim.get_format("fp16").replace(saturate=True)
    assert fpsim.div(1.0, 0.0, saturating) == 65504
    assert np.isnan(fpsim.div(0.0, 0.0, "float4_e2m1fn"))


def test_subnormal_operands_may_count_as_zeros():
    daz = fpsim.get_format("fp16").replace(flush_inputs=True)
    assert fpsim.add(2.0**-15, 2.0**-14, daz) == 2.0**-14
    assert fpsim.mul(2.0**-15, 2.0**15, daz) == 0.0
    assert fpsim.div(1.0, 2.0**-15, daz) == np.inf
    assert same(fpsim.sqrt(-(2.0**-20), daz), -0.0)
    assert fpsim.sub(2.0**-14, 1.5 * 2.0**-14, daz) == -(2.0**-15)  # results keep their subnormals


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_fp64_is_the_machine(a, b, c):
    from fractions import Fraction

    x, y, z = (float(np.uint64(bits).view(np.float64)) for bits in (a, b, c))
    with np.errstate(all="ignore"):
        assert same(fpsim.add(x, y, "fp64"), np.float64(x) + y)
        assert same(fpsim.mul(x, y, "fp64"), np.float64(x) * y)
        assert same(fpsim.div(x, y, "fp64"), np.float64(x) / np.float64(y))
        assert same(fpsim.sqrt(x, "fp64"), np.sqrt(np.float64(x)))
        if np.isfinite([x, y, z]).all() and abs(Fraction(x) * Fraction(y) + Fraction(z)) < Fraction(2) ** 1023:
            exact = Fraction(x) * Fraction(y) + Fraction(z)
            assert exact == 0 or float(exact) == fpsim.fma(x, y, z, "fp64")


# Kinds of operands


def test_python_numbers_do_not_widen():
    x = np.array([1.5, 2.5], np.float32)
    assert fpsim.add(x, 0.5, "fp16").dtype == np.float32
    assert fpsim.add(2, x, "fp16").tolist() == [3.5, 4.5]
    assert type(fpsim.add(1, 2, "fp16")) is float
    assert type(fpsim.add(np.float32(1), 2, "fp16")) is np.float32
    assert fpsim.add(np.float16([1]), np.float64([1]), "fp16").dtype == np.float64
    assert fpsim.mul(np.float16([1.5]), np.float16([1.5]), "fp16").dtype == np.float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_tensors(dtype):
    a, b = torch.randn(5, 1, 7).half().to(dtype), torch.randn(3, 7).half().to(dtype)
    got = fpsim.add(a, b, "fp16")
    assert got.dtype == dtype and got.shape == (5, 3, 7)
    assert torch.equal(got.half(), a.half() + b.half())
    assert torch.equal(fpsim.mul(a, 0.5, "fp16").half(), a.half() * 0.5)
    out = torch.empty(5, 3, 7, dtype=dtype)
    assert fpsim.add(a, b, "fp16", out=out) is out and torch.equal(out, got)


def test_bfloat16_tensors():
    a, b = torch.randn(100).bfloat16(), torch.randn(100).bfloat16()
    assert torch.equal(fpsim.div(a, b, "bf16"), a / b)


@pytest.mark.parametrize("mode", [Rounding.NEAREST_EVEN, Rounding.UP], ids=str)
def test_broadcasting_and_strides(mode):
    generator = np.random.default_rng(7)
    x = random_values(fpsim.get_format("fp16"), 60_000, generator, np.float32).reshape(200, 300)
    pairs = ((x, x[0]), (x, x[:, :1]), (x.T, x[:200, :1].T), (x[::2, ::3], x[1::2, 1::3]), (x[:, :1], x[:1]), (x[:0], x[0]))
    for a, b in pairs:
        full = [np.ascontiguousarray(part) for part in np.broadcast_arrays(a, b)]
        assert same(fpsim.mul(a, b, "fp16", mode), fpsim.mul(*full, "fp16", mode))


@pytest.mark.parametrize("mode", ["nearest-even", "odd", "stochastic"])
@pytest.mark.parametrize("name", ["fp16", "fp32"])
def test_the_number_of_threads_changes_nothing(name, mode):
    """Ranges of a broadcast result begin anywhere in a row; draws are those of the element."""
    from fpsim.backend import threads

    generator = np.random.default_rng(18)
    a = random_values(fpsim.get_format(name), 700 * 501, generator, np.float32).reshape(700, 501)
    seed = 5 if mode == "stochastic" else None
    results = []
    try:
        for count in (1, 2, 3):
            threads.set_num_threads(count)
            results += [fpsim.mul(a, b, name, mode, seed=seed) for b in (a[:1], a[::-1])]
    finally:
        threads.set_num_threads(None)
    assert same(results[0], results[2]) and same(results[0], results[4])
    assert same(results[1], results[3]) and same(results[1], results[5])


def test_out_may_be_an_operand():
    x, y = (np.linspace(1, 2, 1025, dtype=np.float32)[:-1] for _ in range(2))
    want = fpsim.add(x, y, "fp32")
    assert fpsim.add(x, y, "fp32", out=x) is x and same(x, want)
    z = np.concatenate([want, want])
    fpsim.add(z[:-1], z[1:], "fp32", "up", out=z[1:])
    assert z[1] == fpsim.add(want[0], want[1], "fp32", "up")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fpsim.add(0.1, 1.0, "fp16"), ValueError, r"a = 0.1 is no value of fp16; round it"),
        (lambda: fpsim.mul(np.float32([[1, 2], [3, 0.1]]), 1.0, "fp16"), ValueError, r"a\[1, 1\] = 0.1"),
        (lambda: fpsim.add(1.0, np.inf, "e4m3fn"), ValueError, "b = inf is no value"),
        (lambda: fpsim.add(1.0, 1.0, "e8m0fnu"), ValueError, "no zero"),
        (lambda: fpsim.add(1.0, 1.0, "e11m30"), ValueError, "rounding and encoding only"),
        (lambda: fpsim.add(1.0, 1.0, "e11m10"), ValueError, "rounding and encoding only"),
        (lambda: fpsim.add(1.0, 1.0, "fp64", "up"), ValueError, "nearest-even only"),
        (lambda: fpsim.add(1.0, 1.0, "e3m0", "odd"), ValueError, "never even"),
        (lambda: fpsim.add(np.ones(3), np.ones(4), "fp16"), ValueError, r"broadcast together: a \(3,\), b \(4,\)"),
        (lambda: fpsim.add(np.ones(3, int), 1.0, "fp16"), TypeError, "a must be float16"),
        (lambda: fpsim.add(torch.ones(3), np.ones(3), "fp16"), TypeError, "got both"),
        (lambda: fpsim.add(torch.ones(3, device="meta"), 1.0, "fp16"), TypeError, "on the CPU"),
        (lambda: fpsim.add(np.ones(3, np.float16), 1.0, "fp32"), ValueError, "cannot hold"),
        (lambda: fpsim.add(np.ones(3), 1.0, "fp16", out=np.empty(4)), ValueError, "out must have"),
        (lambda: fpsim.add(np.ones(3), 1.0, "fp16", out=np.empty(3, np.float32)), ValueError, "out must have"),
        (lambda: fpsim.add(1.0, 1.0, "fp16", "stochastic"), ValueError, "needs seed"),
        (lambda: fpsim.add(1.0, 1.0, "fp16", seed=1), ValueError, "no use"),
        (lambda: fpsim.add(1.0, 1.0, "fp16", "nearest"), ValueError, "known are"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


@settings(max_examples=300, deadline=None)
@given(modes(), st.sampled_from(ALL_COMPUTING), st.integers(0, 2**32))
def test_addition_and_multiplication_commute(mode, fmt, seed):
    if defined(fmt, mode):
        generator = np.random.default_rng(seed)
        a, b = (clustered_values(fmt, 100, generator) for _ in range(2))
        assert same(fpsim.add(a, b, fmt, mode), fpsim.add(b, a, fmt, mode))
        assert same(fpsim.mul(a, b, fmt, mode), fpsim.mul(b, a, fmt, mode))
