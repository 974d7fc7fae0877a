"""Sums of so many terms that powers of 1 + u leave float64: the right value where there is one, an infinite bound where not."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import fpsim
from fpsim import bounds
from fpsim.accumulation import Tree, orders
from fpsim.accumulation.heights import most_roundings
from fpsim.numbers.formats import get_format
from tests.frequency import often

E5M2_TERMS, BF16_TERMS, FP16_TERMS = 3182, 91_208, 800_000  # from here on (1 + 2u)^n was beyond float64
STOPS = {"e5m2": 8.0, "bf16": 256.0, "fp16": 2048.0}  # 2^p: one more is half an ulp, and ties to it
ORDERS = ["", ":pairwise", ":blocked(9)", ":lanes(4)", ":lanes(4,pairwise)", ":split(5)"]


def ones_of(fmt, terms, order):
    """The sum of so many ones in a format, in the order, each part being a chain that stops at 2^p."""
    stop = STOPS[fmt]
    if order == ":pairwise":
        return None
    count = int(order[order.index("(") + 1 :].rstrip(")").split(",")[0]) if order else 1
    if order.startswith(":blocked"):
        block = min(float(count), stop)
        total = 0.0
        while (more := fpsim.add(total, block, fmt)) != total:
            total = more
        return total
    total, parts = 0.0, [stop] * count
    if "pairwise" in order:
        return fpsim.add(fpsim.add(stop, stop, fmt), fpsim.add(stop, stop, fmt), fmt)
    for part in parts:
        total = fpsim.add(total, part, fmt)
    return total


@pytest.mark.parametrize("products", ["", ":fma", ":exact-products"])
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_more_terms_than_powers_hold(order, products):
    """Alone and in a matrix, counted and bounded."""
    if (order, products) == (":pairwise", ":fma"):
        return
    x = np.ones(E5M2_TERMS, np.float32)
    how = {"fmt": "e5m2", "accumulate": f"e5m2{order}{products}"}
    result = fpsim.dot(x, x, **how)
    want = ones_of("e5m2", x.size, order)
    assert result == want if want is not None else result >= 2048
    matrix = np.ones((6, x.size), np.float32)
    results = [fpsim.matmul(matrix, x[:, None], **how), fpsim.matmul(matrix, x[:, None], counters=fpsim.Counters(), **how)]
    results += [fpsim.sum(matrix, 1, **how), fpsim.sum(matrix, 1, counters=fpsim.Counters(), **how)]
    assert all(np.all(found == result) for found in results)
    for value, limit in (fpsim.dot(x, x, error_bound=True, **how), fpsim.sum(x, error_bound=True, **how)):
        assert abs(x.size - float(value)) <= limit


@pytest.mark.parametrize("accumulate", ["e5m2:kahan", "e5m2:neumaier", "exact", "native", "fp32", "e5m2:blocked(8)->fp32"])
def test_other_accumulators_of_as_many_terms(accumulate):
    x = np.ones(E5M2_TERMS, np.float32)
    for function in (lambda **how: fpsim.dot(x, x, **how), lambda **how: fpsim.sum(x, **how)):
        value, limit = function(fmt="e5m2", accumulate=accumulate, error_bound=True)
        assert abs(x.size - float(value)) <= limit and value == function(fmt="e5m2", accumulate=accumulate)


def test_the_gradient_of_a_weight_is_such_a_sum():
    gradient = np.ones((1, 1, 302, 302), np.float32)
    assert gradient.size >= BF16_TERMS - 4
    x = np.ones((1, 1, 304, 304), np.float32)
    found = fpsim.conv_weight_gradient(gradient, x, (1, 1, 3, 3), fmt="bf16", accumulate="bf16")
    assert np.all(found == 256)
    layer, given = torch.nn.Conv2d(1, 1, 3, bias=False), torch.ones(1, 1, 305, 305)
    with fpsim.emulate(fmt="bf16", accumulate="bf16"):
        layer(given).sum().backward()
    assert torch.all(layer.weight.grad == 256)


def test_a_million_terms():
    """What is known of ones: the chain stops at 2^p, parts each do, float32 and exact sums hold the count."""
    count = 10**6
    x = np.ones(count, np.float32)
    wanted = {"bf16:fma": 256, "fp16": 2048, "bf16:lanes(4)": 1024, "fp16:split(5)": 10240, "fp32": count, "exact": count}
    for accumulate, want in wanted.items():
        assert fpsim.dot(x, x, fmt="bf16", accumulate=accumulate) == fpsim.round(float(want), "bf16"), accumulate
    assert fpsim.sum(x, fmt="fp32", accumulate="fp32:kahan") == count
    assert fpsim.mean(x, fmt="bf16", accumulate="bf16") == fpsim.round(fpsim.round(256 / count, "bf16"), "bf16")
    prefixes = fpsim.cumsum(x, 0, fmt="bf16", accumulate="bf16")
    assert np.array_equal(prefixes[:257], fpsim.round(np.minimum(np.arange(1, 258), 256).astype(np.float32), "bf16"))
    assert np.all(prefixes[256:] == 256)
    counters = fpsim.Counters()
    assert fpsim.sum(x, fmt="bf16", accumulate="bf16", counters=counters) == 256
    assert counters.swamped == count - 256 and counters.additions == count
    value, limit = fpsim.sum(x, fmt="bf16", accumulate="bf16", error_bound=True)
    assert count - float(value) <= limit < math.inf


def test_ten_million_terms():
    x = np.ones(10**7, np.float32)
    assert fpsim.dot(x, x, fmt="bf16", accumulate="bf16") == fpsim.sum(x, fmt="bf16", accumulate="bf16") == 256


@pytest.mark.parametrize("fmt", often(["e5m2", "bf16", "fp16"], ["e5m2"]))
def test_bounds_of_ten_million_terms(fmt):
    """Those of u n are finite, those that grow by powers infinite in the end, and none crashes."""
    count = 10**7
    for accumulate in ("", ":fma", ":kahan", ":neumaier", ":lanes(8)", ":blocked(32)", ":blocked(32)->fp32"):
        for mode in ("nearest-even", "up", "stochastic"):
            found = bounds.accumulation_bound(fmt, f"{fmt}{accumulate}", count, mode)
            assert found.relative > 0 and not math.isnan(found.relative)
    assert bounds.accumulation_bound(fmt, fmt, count).relative < math.inf
    assert bounds.accumulation_bound(fmt, fmt, count, "up").relative == math.inf
    assert bounds.tree(count, fmt) == bounds.gamma(count, fmt) == math.inf
    assert bounds.jeannerod_rump(count, fmt) == count * bounds.unit_roundoff(fmt)


def test_certificates_of_long_sums():
    layer = torch.nn.Linear(BF16_TERMS, 1, bias=False).eval()
    torch.nn.init.constant_(layer.weight, 2.0**-10)
    found = fpsim.certify(layer, torch.ones(1, BF16_TERMS), fmt="bf16", accumulate="bf16")
    with fpsim.emulate(fmt="bf16", accumulate="bf16"), torch.no_grad():
        result = fpsim.run(layer, fmt="bf16", accumulate="bf16")(torch.ones(1, BF16_TERMS))
    assert abs(result.item() - BF16_TERMS * 2.0**-10) <= found.bound.item()


# Exact sums that overflow on the way.

LARGEST = float(np.finfo(np.float64).max)


@pytest.mark.parametrize(
    ("terms", "want"),
    [
        ([1e308, 1e308, -1e308, -1e308, 1.0], 1.0),
        ([LARGEST, LARGEST, -LARGEST, -LARGEST, 5e-324], 5e-324),
        ([LARGEST, LARGEST], math.inf),
        ([-LARGEST, -LARGEST / 2], -math.inf),
        ([LARGEST, LARGEST, -math.inf], -math.inf),
        ([LARGEST, math.inf, -math.inf], math.nan),
        ([LARGEST, -LARGEST], 0.0),
        ([1.0, 2.0**-53, 2.0**-1074], 1 + 2.0**-52),
    ],
)
def test_exact_sums_that_overflow_on_the_way(terms, want):
    found = fpsim.sum(np.array(terms), fmt="fp64", accumulate="exact")
    assert np.array_equal(found, want, equal_nan=True) and not (found == 0 and np.signbit(found))
    product = fpsim.dot(np.array(terms), np.ones(len(terms)), fmt="fp64", accumulate="exact")
    assert np.array_equal(product, want, equal_nan=True)


def test_exact_products_of_fp64():
    """Products of 106 bits over the whole range of exponents, with an addend, against rationals."""
    generator = np.random.default_rng(0)
    for spread in (2, 500):
        a, b, c = (
            generator.standard_normal(shape) * 2.0 ** generator.integers(-spread, spread + 1, shape)
            for shape in ((3, 40), (40, 4), (3, 4))
        )
        b[20:] = b[:20]
        a[0, 20:] = np.nextafter(-a[0, :20], 0)  # nearly all of it cancels
        found = fpsim.matmul(a, b, fmt="fp64", accumulate="exact", addend=c)
        for i, j in np.ndindex(3, 4):
            products = [Fraction(x) * Fraction(y) for x, y in zip(a[i].tolist(), b[:, j].tolist(), strict=True)]
            assert found[i, j] == float(sum(products, Fraction(c[i, j])))
    tiny = np.full(64, 2.0**-540)
    assert fpsim.dot(tiny, tiny, fmt="fp64", accumulate="exact") == 2.0**-1074


@pytest.mark.parametrize("mode", ["nearest-even", "up", "down", "toward-zero", "odd"])
def test_exact_sums_in_the_widest_formats(mode):
    fmt = fpsim.Format("wide", precision=11, emin=-500, emax=510)
    most, least = fmt.max_finite, 2.0**-510
    how = {"fmt": fmt, "accumulate": "exact", "rounding": mode}
    outward = {"nearest-even": math.inf, "up": math.inf}.get(mode, most)
    assert fpsim.sum(np.array([most, most]), **how) == outward
    assert fpsim.dot(np.array([most, most, 1.0]), np.array([most, most, 1.0]), **how) == outward
    assert fpsim.dot(np.array([most, most, 1.0]), np.array([most, -most, 1.0]), **how) == 1
    assert fpsim.sum(np.array([most, most, -most, least]), **how) == (math.inf if mode == "up" else most)


# Trees of many terms.


def test_heights_are_those_of_the_definition():
    generator = np.random.default_rng(0)

    def nested(leaves):
        if len(leaves) == 1:
            return leaves[0]
        cut = int(generator.integers(1, len(leaves)))
        return (nested(leaves[:cut]), nested(leaves[cut:]))

    def defined(tree, values):
        def above(*terms):
            present = [term for term in terms if term is not None]
            if not present:
                return None
            return max(count for count, _ in present) + (len(present) > 1 or not present[0][1]), True

        root = above(tree.evaluate([(0, values)] * tree.leaves, above, zero=None))
        return 0 if root is None else root[0]

    trees = [order(n) for order in (orders.sequential, orders.pairwise, orders.blocked(3), orders.lanes(4)) for n in range(12)]
    for _ in range(100):
        tree = Tree.from_nested(nested(generator.permutation(int(generator.integers(1, 12))).tolist()))
        trees += [tree, tree.chains()]
    trees.append(Tree.from_nested(((0, 1, 2), (3, (4, 5, 6, 7)))))
    for tree in trees:
        assert [most_roundings(tree, values) for values in (True, False)] == [defined(tree, values) for values in (True, False)]


def test_growth_of_long_trees_is_not_cut_off():
    from fpsim.numbers.rounding import Rounding
    from fpsim.sums.plan import growth

    fmt = get_format("fp32")
    found = growth(orders.sequential(10**7), fmt, Rounding.UP)
    assert 3.2939 < found < 3.2940  # (1 + 2^-23)^(10^7 - 1)
