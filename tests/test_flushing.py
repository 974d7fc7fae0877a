"""Flushing: every operand of every function that reads one, and results that are judged exactly before they are rounded."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import fpsim
from fpsim.numbers.formats import get_format
from fpsim.numbers.rounding import Rounding
from tests import sums_oracle as oracle
from tests.elementary_reference import REFERENCE, ball
from tests.frequency import often

ARITHMETIC = {"add": 2, "sub": 2, "mul": 2, "div": 2, "sqrt": 1, "fma": 3}
FUNCTIONS = list(REFERENCE)
ACCUMULATORS = [
    "fp32", "fp16", "exact", "native", "fp16:kahan", "fp32:neumaier", "fp16:pairwise:exact-products", "bf16:lanes(3):fma",
    "fp16:blocked(2)->fp32", "fp32:split(2)->fp16",
]  # fmt: skip


def _table():
    """name -> a call of (operands of shape (4, 5), the settings): every public function that reads operands."""
    table = {}
    for name, count in ARITHMETIC.items():
        table[name] = lambda x, fmt, name=name, count=count: getattr(fpsim, name)(*x[:count], fmt)
    for name in FUNCTIONS:
        table[name] = lambda x, fmt, name=name: getattr(fpsim, name)(x[0], fmt)
    for accumulate in ACCUMULATORS:
        how = {"accumulate": accumulate}
        for name, call in _sums().items():
            table[f"{name} {accumulate}"] = lambda x, fmt, call=call, how=how: call(x, {"fmt": fmt, **how})
        if accumulate in ("fp32", "fp16"):
            table[f"cumsum {accumulate}"] = lambda x, fmt, how=how: [
                fpsim.cumsum(x[0], axis, fmt=fmt, **how) for axis in (0, 1)
            ]
    return table


def _sums():
    def addend(x):
        return x[2][:, :4]

    return {
        "matmul": lambda x, how: fpsim.matmul(x[0], x[1].T, **how),
        "matmul and addend": lambda x, how: fpsim.matmul(x[0], x[1].T, addend=addend(x), **how),
        "dot and addend": lambda x, how: fpsim.dot(x[0][0], x[1][0], addend=x[2][0, 0], **how),
        "nothing but an addend": lambda x, how: fpsim.matmul(x[0][:, :0], x[1].T[:0], addend=addend(x), **how),
        "sum": lambda x, how: [fpsim.sum(x[0], axis, **how) for axis in (0, 1, None)],
        "mean": lambda x, how: [fpsim.mean(x[0], axis, **how) for axis in (0, 1, None)],
        "conv and bias": lambda x, how: fpsim.conv(x[0][None], x[1][:, :4, None], x[2][:, 0], **how),
        "conv_input_gradient": lambda x, how: fpsim.conv_input_gradient(x[0][None], x[1][:, :4, None], (1, 4, 5), **how),
        "conv_weight_gradient": lambda x, how: fpsim.conv_weight_gradient(x[0][None], x[1][None], (4, 4, 1), **how),
    }


TABLE = _table()


def operands(fmt, seed):
    """Three arrays around the smallest normal number, nearly half of them subnormal, with zeros of both signs."""
    generator = np.random.default_rng(seed)
    x = generator.choice([-1.0, 1.0], (3, 4, 5)) * 2.0 ** generator.integers(fmt.emin - 3, fmt.emin + 3, (3, 4, 5))
    x = np.where(generator.random(x.shape) < 0.1, np.copysign(0.0, x), x * generator.choice([1.0, 1.5], x.shape))
    return fpsim.round(x.astype(np.float32), fmt)


def flat(result):
    parts = result if isinstance(result, list) else [result]
    return np.concatenate([np.ravel(np.asarray(part, np.float64)) for part in parts])


def same(left, right):
    left, right = flat(left), flat(right)
    signs = [np.signbit(x) & ~np.isnan(x) for x in (left, right)]
    return np.array_equal(left, right, equal_nan=True) and np.array_equal(*signs)


@pytest.mark.parametrize("name", often(["fp16", "e5m2", "e4m3fn", "e4m3fnuz"], ["fp16"]))
@pytest.mark.parametrize("function", TABLE)
def test_subnormal_operands_count_as_zeros(function, name):
    """What a format that flushes inputs gives is what the format gives of the flushed operands."""
    fmt = get_format(name)
    daz = fmt.replace(name="denormals are zero", flush_inputs=True)
    for seed in range(3):
        x = operands(fmt, seed)
        read = np.vectorize(lambda value: oracle.as_operand(value, daz))(x).astype(np.float32)
        assert not np.array_equal(read, x)
        with np.errstate(all="ignore"):
            assert same(TABLE[function](x, daz), TABLE[function](read, fmt)), seed


def test_bounds_hold_of_operands_as_they_are():
    """A bound takes in what the format did not read: of a sum, a mean, prefix sums, a product and an addend."""
    fmt = get_format("fp16").replace(name="denormals are zero", flush_inputs=True)
    x, y, c = operands(get_format("fp16"), 5)
    for accumulate in ("fp16", "fp32", "exact"):
        how = {"fmt": fmt, "accumulate": accumulate, "error_bound": True}
        cases = [
            (fpsim.sum(x, 1, **how), [sum(map(Fraction, row.tolist())) for row in x]),
            (fpsim.mean(x, 1, **how), [sum(map(Fraction, row.tolist())) / 5 for row in x]),
            (
                fpsim.matmul(x, y.T, addend=c[:, :4], **how),
                [
                    [sum(Fraction(p) * Fraction(q) for p, q in zip(a.tolist(), b.tolist(), strict=True)) + Fraction(float(e))
                     for b, e in zip(y, added, strict=True)]
                    for a, added in zip(x, c[:, :4], strict=True)
                ],
            ),
        ]  # fmt: skip
        if accumulate != "exact":
            prefixes = [[sum(map(Fraction, row[: k + 1].tolist())) for k in range(5)] for row in x]
            cases.append((fpsim.cumsum(x, 1, **how), prefixes))
        for (result, bound), exact in cases:
            for got, limit, want in zip(np.ravel(result).tolist(), np.ravel(bound).tolist(), np.ravel(exact), strict=True):
                assert abs(Fraction(got) - want) <= Fraction(limit), accumulate


def exact_value(name, x):
    """f(x) to 2600 bits as a Fraction, more than erf(40) needs to differ from 1; a float that is not finite, None outside."""
    function, domain, low, high = REFERENCE[name]
    if np.isinf(x):
        limit = high if x > 0 else low
        return Fraction(limit) if math.isfinite(limit) else limit
    if domain is not None and not domain[0] < x < domain[1]:
        return None
    significand, exponent = map(int, ball(function, x, certain=2600).mid().man_exp())
    return significand * Fraction(2) ** exponent


LEAST = [-126, -54, -53, -52, -28, -27, -26, -14, -1, 0, 1]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementary_functions_are_flushed_by_their_exact_value(name):
    """Around least normal numbers that float64 cannot or hardly tell from a function's value there, and near its limits."""
    for precision, emin in [(3, emin) for emin in LEAST] + [(8, -126), (11, -14), (24, -126)]:
        fmt = get_format("fp16").replace(name="flushed", precision=precision, emin=emin, emax=127, flush="before")
        near = [fmt.min_normal * (1 + k * 2.0 ** (1 - precision)) for k in (0, 1, 2, 3)]
        far = [size for size in (0.5, 1.0, 2.0, 6.0, 20.0, 40.0, np.inf) if size >= fmt.min_normal]
        for x in [sign * size for size in near + far for sign in (1, -1)]:
            exact = exact_value(name, x)
            if exact is not None:
                want = oracle.rounded(exact, fmt, Rounding.NEAREST_EVEN)
                assert same(getattr(fpsim, name)(x, fmt), want), (emin, precision, x, want)


def test_emulated_functions_are_flushed_by_their_exact_value():
    """As the array functions, whatever the size; x sigmoid(x) and x Phi(x) are below x / 2 where x is negative."""
    fmt = get_format("bf16").replace(name="flushed", flush="before")
    x = np.float32(fmt.min_normal) * np.array([1, -1, 1.5, -1.5, 2, -2, 3, 0], np.float32)
    for granularity in ("kernel", "primitive"):
        with fpsim.emulate(fmt=fmt, granularity=granularity):
            for name in FUNCTIONS:
                want = getattr(fpsim, name)(x, fmt)
                for repeats in (1, 5000):
                    given = torch.from_numpy(np.tile(x, repeats))
                    assert same(getattr(torch, name)(given).numpy(), np.tile(want, repeats)), name
    functional, least = torch.nn.functional, fmt.min_normal
    with fpsim.emulate(fmt=fmt):
        for function in (functional.silu, functional.gelu):
            assert same(function(torch.tensor([-2 * least, 2 * least, -3 * least])), [-0.0, least, -1.5 * least])
        for alpha in (1.0, 0.5):
            x = torch.tensor([-least / alpha, -2 * least / alpha, least])
            assert same(functional.elu(x, alpha), [-0.0, -2 * least, least])


@pytest.mark.parametrize("mode", often(oracle.DETERMINISTIC, [Rounding.NEAREST_EVEN, Rounding.DOWN]), ids=str)
def test_sums_are_flushed_by_their_exact_value(mode):
    """A least normal number, or two, beside a product that no carrier shows: from both sides, of both signs."""
    fmt = get_format("bf16").replace(name="flushed", flush="before")
    least, tiny = fmt.min_normal, 2.0**-100
    for size, sign, rest in [(size, sign, rest) for size in (least, 2 * least) for sign in (1, -1) for rest in (tiny, -tiny)]:
        a, b = np.array([[sign, rest]], np.float32), np.array([[size], [tiny]], np.float32)
        exact = Fraction(sign * size) + Fraction(rest * tiny)
        want = oracle.rounded(exact, fmt, mode)
        tree = fpsim.Accumulator(format=fmt, order="pairwise", products="exact")
        for accumulator, result in ((fpsim.Accumulator(kind="exact"), want), (tree, oracle.add(0.0, want, fmt, mode))):
            how = {"fmt": fmt, "accumulate": accumulator, "rounding": mode}
            many = fpsim.matmul(np.tile(a, (6, 1)), np.tile(b, (1, 40)), **how)
            assert same(many, np.full((6, 40), result)), (size, sign, rest, str(accumulator))
        assert same(fpsim.fma(rest, tiny, sign * size, fmt, mode), want)
        chained = fpsim.Accumulator(format=fmt, products="fma")
        fused = fpsim.matmul(np.tile(a, (6, 1)), np.tile(b, (1, 40)), fmt=fmt, accumulate=chained, rounding=mode)
        total = 0.0
        for left, right in zip(a[0].tolist(), b[:, 0].tolist(), strict=True):
            total = oracle.add(total, Fraction(left) * Fraction(right), fmt, mode)
        assert same(fused, np.full((6, 40), total))
