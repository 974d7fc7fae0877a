"""Flushing: every operand of every function that reads one, and results that are judged exactly before they are rounded."""

from fractions import Fraction

import numpy as np
import pytest

import fpsim
from fpsim.formats import get_format
from tests import sums_oracle as oracle

ARITHMETIC = {"add": 2, "sub": 2, "mul": 2, "div": 2, "sqrt": 1, "fma": 3}
FUNCTIONS = (
    "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh sigmoid erf erfc rsqrt"
).split()
ACCUMULATORS = [
    "fp32", "fp16", "exact", "native", "fp16:kahan", "fp32:neumaier", "fp16:pairwise:exact-products", "bf16:lanes(3):fma",
    "fp16:blocked(2)->fp32",
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
        table |= {f"{name} {accumulate}": (lambda x, fmt, f=f, how=how: f(x, {"fmt": fmt, **how})) for name, f in _sums().items()}
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
    return np.concatenate([np.ravel(np.asarray(part, np.float64)) for part in (result if isinstance(result, list) else [result])])


def same(left, right):
    left, right = flat(left), flat(right)
    signs = [np.signbit(x) & ~np.isnan(x) for x in (left, right)]
    return np.array_equal(left, right, equal_nan=True) and np.array_equal(*signs)


@pytest.mark.parametrize("name", ["fp16", "e5m2", "e4m3fn", "e4m3fnuz"])
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
