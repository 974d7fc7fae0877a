"""Orders by their definitions in words, where the sign of a zero tells: fused underflows, flushing, rounding down."""

import itertools
import math

import numpy as np
import pytest

import fpsim
from fpsim.accumulation import get_accumulator
from fpsim.numbers.formats import get_format
from fpsim.numbers.rounding import Rounding
from tests import sums_oracle as oracle
from tests.frequency import often

FLUSHED = [
    get_format("fp16").replace(name="fp16 flushed after", flush="after"),
    get_format("bf16").replace(name="bf16 flushed before", flush="before"),
]
FORMATS = [get_format(name) for name in ("fp16", "bf16", "fp32", "e5m2", "e4m3fnuz")] + FLUSHED
NEAREST = Rounding.NEAREST_EVEN


def parts_of(name, size, leaves):
    """The terms of each part: contiguous blocks, strided lanes, or contiguous parts as equal as can be."""
    if name == "blocked":
        return [leaves[first : first + size] for first in range(0, len(leaves), size)]
    if name == "lanes":
        return [leaves[lane::size] for lane in range(min(size, len(leaves)))]
    longer = len(leaves) % min(size, len(leaves))
    lengths = [len(leaves) // min(size, len(leaves)) + (part < longer) for part in range(min(size, len(leaves)))]
    return [leaves[sum(lengths[:part]) :][: lengths[part]] for part in range(len(lengths))]


def levels(values, add):
    while len(values) > 1:
        values = [add(*values[k : k + 2]) if k + 1 < len(values) else values[k] for k in range(0, len(values), 2)]
    return values[0]


def by_definition(order, leaves, add):
    """The sum as semantics has it in words."""

    def chain(terms):
        total = 0.0
        for term in terms:
            total = add(total, term)
        return total

    name, size, *how = order
    if name == "sequential":
        return chain(leaves)
    if name == "pairwise":
        return add(0.0, levels(leaves, add))
    sums = [chain(part) for part in parts_of(name, size, leaves)]
    if name == "blocked":
        return chain(sums)
    if how:
        return add(0.0, levels(sums, add))
    total = sums[0]
    for part in sums[1:]:
        total = add(total, part)
    return add(0.0, total)


ORDERS = [
    ("sequential", 0), ("pairwise", 0), ("blocked", 3), ("blocked", 50), ("lanes", 1), ("lanes", 3), ("lanes", 50),
    ("lanes", 4, "pairwise"), ("split", 1), ("split", 2), ("split", 50),
]  # fmt: skip


def text_of(order, products):
    name, size, *how = order
    text = name if name in ("sequential", "pairwise") else f"{name}({','.join(map(str, (size, *how)))})"
    return f":{text}" + {"rounded": "", "fma": ":fma", "exact": ":exact-products"}[products]


def tiny_factors(fmt, rows, leaves, columns, seed):
    """Factors whose products lie around the smallest number, nearly all negative, some zeros; and a few that are not tiny."""
    generator = np.random.default_rng(seed)
    half = (fmt.emin - fmt.precision + 1) // 2
    a = -(2.0 ** generator.integers(half - 2, half + 1, (rows, leaves)))
    b = 2.0 ** generator.integers(half - 2, half + 1, (leaves, columns))
    a[-1], b[:, -1] = np.abs(a[-1]), -b[:, -1]  # all positive rows, and columns that turn signs
    a[generator.random(a.shape) < 0.1] = 0.0
    b[generator.random(b.shape) < 0.1] = -0.0
    a[0] *= 2.0 ** generator.integers(0, 6, leaves)
    return tuple(fpsim.round(x, fmt.replace(flush=None), "toward-zero").astype(np.float32) for x in (a, b))


def expected(a, b, accumulator, order, fmt, mode):
    """Signed zeros included, of every element."""
    held = accumulator.format
    out = np.empty((len(a), b.shape[1]))
    for i, j in np.ndindex(*out.shape):
        leaves = [oracle.leaf(x, y, accumulator, mode) for x, y in zip(a[i].tolist(), b[:, j].tolist(), strict=True)]
        total = by_definition(order, leaves, lambda left, right: oracle.add(left, right, held, mode))
        out[i, j] = oracle.finished(total, held, fmt, mode)
    return out


def same(got, want):
    return np.array_equal(got, want) and np.array_equal(np.signbit(got), np.signbit(want))


@pytest.mark.parametrize(
    ("fmt", "order"),
    often(
        itertools.product(FORMATS, ORDERS),
        lambda case: case[0].name == "fp16",
    ),
    ids=str,
)
def test_products_that_underflow(fmt, order):
    """In every mode and way: dots, few rows and many, counted, bounded, a batch, with products rounded, fused and exact."""
    for products in ("rounded", "fma", "exact"):
        if products == "fma" and order[0] == "pairwise":
            continue
        accumulator = get_accumulator("fp32" + text_of(order, products))
        accumulator = type(accumulator)(format=fmt, order=accumulator.order, products=products)
        for leaves in (1, 7):
            a, b = tiny_factors(fmt, 6, leaves, 4, leaves)
            if fmt.flush:
                a, b = (np.where(np.abs(x) < fmt.min_normal, np.copysign(np.float32(fmt.min_normal), x), x) for x in (a, b))
            for mode in oracle.DETERMINISTIC:
                how = {"fmt": fmt, "accumulate": accumulator, "rounding": mode}
                want = expected(a, b, accumulator, order, fmt, mode)
                wide = fpsim.matmul(a, np.tile(b, 10), **how)
                assert same(wide, np.tile(want, 10)), (products, leaves, mode)
                if mode in (NEAREST, Rounding.DOWN):
                    assert same(fpsim.matmul(a, b, **how), want)
                    assert same(fpsim.matmul(a[:2], np.tile(b, 10), **how), np.tile(want, 10)[:2])
                    assert same(fpsim.matmul(a, b, counters=fpsim.Counters(), **how), want)
                    assert same(fpsim.matmul(a, b, error_bound=True, **how)[0], want)
                    assert same([fpsim.dot(a[0], b[:, 0], **how)], want[:1, 0])


def test_a_fused_sum_that_underflows_from_below():
    """Each part is -0; a chain of fused multiply-adds is, and (+0) + tree is +0, but for rounding down."""
    a, b = np.full((8, 8), -(2.0**-70), np.float32), np.full((8, 40), 2.0**-70, np.float32)
    for order, negative in {
        "sequential": True, "lanes(2)": False, "lanes(1)": False, "split(2)": False, "split(1)": False,
        "lanes(4,pairwise)": False, "blocked(2)": False, "blocked(8)": False,
    }.items():  # fmt: skip
        how = {"fmt": "bf16", "accumulate": f"bf16:{order}:fma"}
        for result in (fpsim.matmul(a, b, **how), fpsim.dot(a[0], b[:, 0], **how), fpsim.matmul(a[:1], b, **how)):
            assert not np.any(result) and np.all(np.signbit(result) == negative), order
        assert math.copysign(1, fpsim.dot(a[0], b[:, 0], rounding="up", **how)) == (-1 if negative else 1)
        assert fpsim.dot(a[0], b[:, 0], rounding="down", **how) < 0


@pytest.mark.parametrize(
    ("fmt", "order"), often(itertools.product(FLUSHED, ORDERS), lambda case: case[0] is FLUSHED[0]), ids=str
)
def test_sums_that_are_flushed(fmt, order):
    """Terms around the smallest normal number that cancel nearly: along rows and columns."""
    accumulator = type(get_accumulator())(format=fmt, order=get_accumulator("fp32" + text_of(order, "rounded")).order)
    generator = np.random.default_rng(1)
    least = fmt.min_normal
    x = generator.choice([1, -1.25, 1.25, -1.5, 0.0], (20, 7)).astype(np.float32) * np.float32(least)
    ones = np.ones((7, 1), np.float32)
    for mode in oracle.DETERMINISTIC:
        want = expected(x, ones, accumulator, order, fmt, mode)[:, 0]
        how = {"fmt": fmt, "accumulate": accumulator, "rounding": mode}
        assert same(fpsim.sum(x, 1, **how), want)
        assert same(fpsim.sum(np.ascontiguousarray(x.T), 0, **how), want)
        assert same(fpsim.sum(x, 1, counters=fpsim.Counters(), **how), want)
