"""A-priori bounds against exact sums: never violated, attained, and what each of their parts is there for."""

import math
from fractions import Fraction as F
from itertools import product as combinations
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import fpsim
from fpsim import bounds
from fpsim.accumulation import get_accumulator
from fpsim.numbers.formats import get_format
from tests.hard_sums import KINDS, exact_sums, hard_operands
from tests.tree_search import Search, evaluate

#: (operands, accumulator): every kind of accumulator, and operands that fit it and that do not.
CASES = [
    ("fp16", "fp16"), ("fp16", "fp16:pairwise"), ("fp16", "fp16:fma"), ("fp16", "fp16:exact-products"), ("fp16", "bf16"),
    ("fp16", "fp16:blocked(3)"), ("fp16", "fp16:blocked(4)->fp32"), ("fp16", "fp16:lanes(3,pairwise)"), ("fp16", "fp32"),
    ("fp16", "fp32:split(3)->bf16"), ("fp16", "bf16:lanes(2)->fp16"), ("e4m3fn", "fp16:split(2)->e5m2"),
    ("fp16", "fp16:kahan"), ("fp16", "fp16:neumaier"), ("fp16", "exact"), ("fp32", "native"), ("bf16", "fp16"),
    ("e4m3fn", "e4m3fn"), ("e4m3fn", "e5m2:split(2)"), ("e4m3fn", "e4m3fn:kahan"), ("e5m2", "e5m2:neumaier"),
    ("fp16", "h100"), ("fp16", "h100:fp16"), ("fp16", "v100"), ("e4m3fn", "ada"), ("e4m3fn", "h100_mma:fp16"),
    ("e4m3fnuz", "mi300"), ("fp16", "mi300"), ("fp16", "mi100"), ("fp16", "mi250"), ("bf16", "avx512_bf16"),
    ("fp16", "avx512_fp16"), ("bf16", "amx_bf16"), ("bf16", "arm_bf16"), ("bf16", "arm_ebf16"),
]  # fmt: skip
FLUSHED = get_format("fp16").replace(name="fp16 flushed", flush="after")
FREE_MODES = ("nearest-even", "stochastic")  # the others in the sweeps
unconfirmed = pytest.mark.filterwarnings("ignore::fpsim.hardware.UnconfirmedUnit")


def modes_of(accumulator):
    return FREE_MODES if accumulator.kind not in ("unit", "native") else ("nearest-even",)


def cases():
    """A format, an accumulator (one of two: the sweeps take all), a mode, a kind of data, a number of terms and a seed."""
    whole = st.sampled_from(CASES[::2]).flatmap(
        lambda case: st.tuples(
            st.just(get_format(case[0])),
            st.just(get_accumulator(case[1])),
            st.sampled_from(modes_of(get_accumulator(case[1]))),
            st.sampled_from(KINDS),
            st.integers(0, 40),
            st.integers(0, 2**32 - 1),
        )
    )
    return whole


def made(fmt, accumulator, mode, kind, terms, seed, **options):
    """Operands, what `fpsim.matmul` makes of them, and their exact sums."""
    held = fmt if accumulator.kind in ("exact", "native") else accumulator.format
    rows, columns = ((2, 3), (4, 1), (1, 5))[seed % 3]
    a, b = hard_operands(kind, fmt, held, rows, terms, columns, seed)
    how = {"fmt": fmt, "accumulate": accumulator, "rounding": mode, "seed": seed if mode == "stochastic" else None}
    return a, b, fpsim.matmul(a, b, **how, **options)


@unconfirmed
@settings(max_examples=200, deadline=None)
@given(cases())
def test_no_bound_is_violated(case):
    fmt, accumulator, mode, _, terms, _ = case
    a, b, result = made(*case)
    bound = bounds.accumulation_bound(fmt, accumulator, terms, mode)
    store = bounds.rounding_bound(fmt, mode, held=bound.format)
    if bound.relative == inf:
        return
    a, b = (np.where(np.abs(x) < bound.zero_below, 0, x) for x in (a, b))
    for i, j, total, size in exact_sums(a, b):
        if size > F(bound.largest):
            continue
        error = F(bound.relative) * size + F(bound.absolute)
        if abs(total) + error > F(store.largest):
            continue
        error += F(store.relative) * (abs(total) + error) + F(store.absolute)
        assert np.isfinite(result[i, j]), "T <= largest, and yet it overflowed"
        assert abs(F(float(result[i, j])) - total) <= error


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["fp16", "fp16:pairwise", "fp32", "h100", "fp16:kahan"]),
    st.sampled_from(KINDS),
    st.integers(0, 2**32 - 1),
)
def test_the_bound_of_given_operands_holds(accumulate, kind, seed):
    fmt = get_format("fp16")
    a, b, result = made(fmt, get_accumulator(accumulate), "nearest-even", kind, 17, seed)
    bound = bounds.matmul(a, b, fmt=fmt, accumulate=accumulate)
    for i, j, total, _ in exact_sums(a, b):
        assert bound[i, j] == inf or abs(F(float(result[i, j])) - total) <= F(float(bound[i, j]))


def test_shapes_of_the_bound_of_given_operands():
    a, b = np.ones((3, 4)), np.ones((4, 5))
    for x, y in combinations((a, a[0]), (b, b[:, 0])):
        assert np.shape(bounds.matmul(x, y, fmt="fp16")) == np.shape(x @ y)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 4\)"):
        bounds.matmul(a, a, fmt="fp16")


# Attained: halved, each bound fails


def error_of(values, accumulate, mode="nearest-even", fmt="fp32", scale=1.0):
    """(error, sum of magnitudes) of values times `scale` summed as products."""
    values = np.asarray(values, np.float64)
    ones = np.full(values.size, scale)
    result = fpsim.dot(values, ones, fmt=fmt, accumulate=accumulate, rounding=mode)
    exact = sum((F(x) for x in values.tolist()), F(0)) * F(scale)
    return abs(F(float(result)) - exact), sum((abs(F(x)) for x in values.tolist()), F(0)) * F(scale)


U = 2.0**-11  # of fp16
STEPS = 200
ATTAINING = {
    "to nearest, a chain": ([1.0] + [U] * STEPS, "fp16", "nearest-even"),
    "to nearest, one addition": ([1.0, U], "fp16:pairwise", "nearest-even"),
    "fused, to nearest": ([1.0] + [U] * STEPS, "fp16:fma", "nearest-even"),
    "toward zero": ([1.0] + [2 * U * (1 - U)] * STEPS, "fp16", "toward-zero"),
    "upward": ([1.0] + [2.0**-20] * STEPS, "fp16", "up"),
    "to odd": ([1.0, 2.0**-20], "fp16", "odd"),
    "in blocks": (([1.0] + [U] * 15) * 4, "fp16:blocked(16)", "nearest-even"),
    "promoted": (([1.0] + [U] * 15) * 4, "fp16:blocked(16)->fp32", "nearest-even"),
    "neumaier": ([1.0, U], "fp16:neumaier", "nearest-even"),
    "a tensor core": ([1.0] + [2.0**-25 * (1 - 2.0**-10)] * 15, "h100", "nearest-even"),
}


@pytest.mark.parametrize("name", ATTAINING)
def test_every_factor_is_needed(name):
    values, accumulate, mode = ATTAINING[name]
    operand = "fp16" if accumulate == "h100" else "fp32"
    if operand == "fp16":  # products of fp16 values that lie just below the bits that are kept
        small, other = 2.0**-13 * (2 - 2.0**-10), 2.0**-13
        a, b = np.array([1.0] + [small] * 15), np.array([1.0] + [other] * 15)
        result = fpsim.hardware.product(a[None], b[:, None], unit="h100", fmt="fp16")[0, 0]
        ((_, _, exact, size),) = exact_sums(a[None], b[:, None])
        error = abs(F(float(result)) - exact)
    else:
        error, size = error_of(values, accumulate, mode)
    terms = 16 if operand == "fp16" else len(values)
    bound = bounds.accumulation_bound(operand, accumulate, terms, mode, products=operand == "fp16", operand_largest=1.0)
    if operand == "fp32":  # values that fp16 holds: no leaf is rounded
        bound = bounds.accumulation_bound("fp16", accumulate, terms, mode, products=False)
    assert error <= F(bound.relative) * size + F(bound.absolute)
    assert error > F(bound.relative) / 2 * size + F(bound.absolute) / 2, "the bound is never nearly attained"


@pytest.mark.parametrize("mode, held, factor", [
    ("nearest-even", "fp16", 1 - 2.0**-10), ("up", "fp16", 2.0**-4), ("nearest-even", FLUSHED, 2 - 2.0**-9),
])  # fmt: skip
def test_underflow_is_needed(mode, held, factor):
    """Products below half the smallest subnormal, just above zero, and just below the smallest normal number."""
    terms = 64
    small = (FLUSHED.min_normal / 2 if held is FLUSHED else 2.0**-25) * factor
    accumulator = fpsim.Accumulator(format=held)
    error, size = error_of([small * 2.0**10] * terms, accumulator, mode, scale=2.0**-10)
    bound = bounds.accumulation_bound("fp32", accumulator, terms, mode)
    assert error <= F(bound.relative) * size + F(bound.absolute)
    halved = F(bound.absolute) / 2 if held != FLUSHED else F(bound.absolute) * F(2, 5)  # its additions may flush as well
    assert error > F(bound.relative) / 2 * size + halved


def test_alignment_to_a_subnormal_operand_is_needed():
    """A subnormal operand aligns as the least normal one: what its product cuts off is no fraction of the terms."""
    tiny = 2.0**-24
    a, b = np.array([tiny] + [2.0**-13] * 15), np.array([32768.0] + [2.0**-13 * (2 - 2.0**-10)] * 15)
    result = fpsim.hardware.product(a[None], b[:, None], unit="h100", fmt="fp16")[0, 0]
    ((_, _, exact, size),) = exact_sums(a[None], b[:, None])
    bound = bounds.accumulation_bound("fp16", "h100", 16)
    error = abs(F(float(result)) - exact)
    assert F(bound.relative) * size < error <= F(bound.relative) * size + F(bound.absolute)


@pytest.mark.parametrize("fmt", ["fp16", "bf16", "e4m3fn", FLUSHED], ids=str)
@pytest.mark.parametrize("mode, z", [("nearest-even", 1.0), ("toward-zero", 2.0), ("up", 2.0**-20), ("odd", 2.0**-20)])
def test_one_rounding_is_bounded_and_attained(fmt, mode, z):
    fmt = get_format(fmt)
    bound = bounds.rounding_bound(fmt, mode)
    z = 1 + fmt.unit_roundoff * z * (1 - 2.0**-20 if mode == "toward-zero" else 1)
    error = abs(F(fpsim.round(z, fmt, mode)) - F(z))
    assert F(bound.relative) * F(z) / 2 < error <= F(bound.relative) * F(z)
    parts = {"nearest-even": 0.5, "toward-zero": 1 - 2.0**-20, "up": 2.0**-9, "odd": 2.0**-9}
    least = fmt.min_normal * (1 - 2.0**-10) if fmt.flush else fmt.min_subnormal * parts[mode]
    error = abs(F(fpsim.round(least, fmt, mode)) - F(least))
    assert F(bound.absolute) * F(499, 1000) < error <= F(bound.absolute)


def test_the_sum_that_just_does_not_overflow():
    for accumulate in ("fp16", "fp16:pairwise", "fp16:kahan", "h100:fp16"):
        for terms in (1, 2, 33):
            largest = bounds.accumulation_bound("fp16", accumulate, terms).largest
            values = np.full(terms, fpsim.round(largest / terms, "fp16", "toward-zero"))
            assert np.isfinite(fpsim.dot(values, np.ones(terms), fmt="fp16", accumulate=accumulate))
    bound = bounds.accumulation_bound("fp16", "fp16", 33)
    assert bound.error(bound.largest) < inf == bound.error(np.nextafter(bound.largest, inf)) == bound.error(np.nan)
    assert bound.error_without_overflow(1e6) < inf


# Numbers as numbers


def test_factors_are_rounded_upward():
    u = F(1, 2**11)
    v = u / (1 + u)
    for height in (0, 1, 2, 3, 10, 100, 1000):
        assert F(bounds.tree(height, "fp16")) >= (1 + v) ** height - 1
        assert bounds.tree(height, "fp16") <= float((1 + v) ** height - 1) * (1 + 2.0**-51)
    assert bounds.tree(10**9, "fp16") == inf
    assert bounds.gamma(1000, "fp16") >= 1000 * u / (1 - 1000 * u) and bounds.gamma(2048, "fp16") == inf
    assert bounds.jeannerod_rump(4096, "fp16") == 2.0
    assert bounds.lange_rump(44, "fp16") == 44 * 2.0**-11 < bounds.tree(44, "fp16") and bounds.lange_rump(45, "fp16") == inf
    assert bounds.lange_rump(15, "bf16") < inf and bounds.lange_rump(4096, "fp32") == inf
    assert bounds.unit_roundoff("bf16") == 2.0**-8 and bounds.unit_roundoff("bf16", "up") == 2.0**-7
    assert bounds.rounding_bound("fp16").relative >= v > F(np.nextafter(bounds.rounding_bound("fp16").relative, 0))


def test_orders_are_told_apart():
    terms = 1000
    relative = [
        bounds.accumulation_bound("fp16", accumulate, terms).relative
        for accumulate in ("exact", "fp32:pairwise", "fp32", "fp16:kahan", "fp16:pairwise", "fp16:blocked(32)", "fp16")
    ]
    assert relative == sorted(relative) and relative[0] == 0
    assert bounds.accumulation_bound("fp16", "fp32", 7).absolute == 0, "products of fp16 values are exact in fp32"
    assert bounds.accumulation_bound("fp16", "fp16", 0).relative == 0
    own = fpsim.Accumulator(format="fp16", order=fpsim.Tree.from_nested(((0, 1), (2, 3))))
    same = (bounds.accumulation_bound("fp16", accumulate, 4).relative for accumulate in (own, "fp16:pairwise"))
    assert len(set(same)) == 1
    with pytest.raises(ValueError, match="4 leaves"):
        bounds.accumulation_bound("fp16", own, 5)


def test_addends_count():
    bound, more = (bounds.accumulation_bound("fp16", "fp16", 8, addends=addends) for addends in (0, 1))
    assert more.relative > bound.relative and more.largest < bound.largest


def test_what_does_not_hold_is_refused():
    assert bounds.kahan(10**7, "bf16") == inf and bounds.accumulation_bound("bf16", "bf16:kahan", 10**7).largest == 0
    with pytest.raises(ValueError, match="nearest only"):
        bounds.jeannerod_rump(5, "fp16", "up")
    with pytest.raises(ValueError, match="nearest only"):
        bounds.lange_rump(5, "fp16", "toward-zero")
    with pytest.raises(ValueError, match="no zero"):
        bounds.accumulation_bound("e8m0fnu", "fp32", 3)
    with pytest.raises(ValueError, match="terms must be"):
        bounds.accumulation_bound("fp16", "fp16", -1)
    with pytest.raises(ValueError, match="errs to one side"):
        bounds.probabilistic_bound("fp16", "fp16", 3, "up")
    with pytest.raises(ValueError, match="no tree"):
        bounds.probabilistic_bound("fp16", "h100", 3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        bounds.probabilistic_bound("fp16", "fp16", 3, confidence=1.0)
    with pytest.raises(ValueError, match="set them to zero"):
        bounds.matmul(np.full((1, 1), 2.0**-20), np.ones((1, 1)), fmt="fp16", accumulate="mi250")
    with pytest.raises(ValueError, match="whole number"):
        bounds.tree(-1, "fp16")


@pytest.mark.parametrize("precision", range(3, 9))
def test_h_u_holds_to_its_condition(precision):
    """No tree at all of that height violates it, whichever side ties go to."""
    u, fmt = 2.0**-precision, f"e8m{precision - 1}"
    heights = [height for height in range(1, 40) if bounds.lange_rump(height, fmt) < inf]
    assert heights == list(range(1, max(3, math.isqrt(2**precision) - 1) + 1))
    for height in heights[-1:] if precision == 8 else heights:
        assert bounds.lange_rump(height, fmt) == height * u
        search = Search(precision, height * u, any_ties=True)
        assert max(search.grow() for _ in range(height)) <= 0


@pytest.mark.parametrize("precision, height", [(4, 3), (5, 4), (6, 7), (7, 10)])
def test_h_u_is_nearly_attained(precision, height):
    """Half of it is exceeded by a tree of that height."""
    search = Search(precision, height * 2.0**-precision / 2)
    assert max(search.grow() for _ in range(height)) > 0
    computed, exact, size, found = evaluate(search.worst(), precision)
    assert found <= height and abs(computed - exact) > F(height, 2 * 2**precision) * size


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "precision, any_ties, lowest",
    [(3, True, 6), (4, True, 8), (5, True, 10), (6, True, 13), (7, True, 17), (8, True, 23), (3, False, 11), (5, False, 16)],
)
def test_the_lowest_trees_that_exceed_h_u(precision, any_ties, lowest):
    for height in (lowest - 1, lowest):
        search = Search(precision, height * 2.0**-precision, any_ties)
        assert (max(search.grow() for _ in range(height)) > 0) == (height == lowest)


def test_h_u_does_not_hold_for_every_height():
    """With p = 4 a tree of 13 levels errs by 13.2u, ties to even, and so does the emulation of it."""
    search = Search(4, 13 / 16)
    for _ in range(12):
        assert search.grow() <= 0
    assert search.grow() > 0
    tree = search.worst()
    computed, exact, size, height = evaluate(tree, 4)
    assert height == 13 and abs(computed - exact) > F(13, 16) * size
    assert abs(computed - exact) <= F(bounds.tree(13, "e8m3")) * size and bounds.lange_rump(13, "e8m3") == inf
    leaves = []

    def numbered(part):
        if isinstance(part, tuple):
            return tuple(map(numbered, part))
        leaves.append(float(part))
        return len(leaves) - 1

    order = fpsim.Tree.from_nested(numbered(tree))
    emulated = fpsim.sum(np.array(leaves, np.float32), fmt="e8m3", accumulate=fpsim.Accumulator(format="e8m3", order=order))
    assert F(float(emulated)) == computed


def test_kahan_errs_by_more_than_two_roundings():
    """2u sum|x| + O(n u^2), as often stated (Goldberg 1991, theorem 8), is too little at first order: here 2.16u.

    With 10 terms in fp16, n u^2 is 0.005u. Found by hill climbing.
    """
    values = [
        8.0078125, 0.50244140625, 0.00048732757568359375, 0.1258544921875, 16.6875, 0.77294921875, 33.78125,
        0.000990867614746093750, 0.1259765625, 4.0625,
    ]  # fmt: skip
    error, size = error_of(values, "fp16:kahan")
    assert F(21, 10) * F(U) * size < error <= F(bounds.kahan(10, "fp16")) * size


def test_to_nearest_alone_n_u_holds():
    """Upward, 1 + tiny + tiny errs by more than n u."""
    error, size = error_of([1.0] + [2.0**-20] * 10, "fp16", "up")
    assert error > F(bounds.jeannerod_rump(11, "fp16")) * size
