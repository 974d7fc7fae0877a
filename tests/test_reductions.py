"""Sums, means and prefix sums against their definitions, and laws of layouts, threads and draws."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import fpsim
from fpsim.accumulation import Accumulator, Tree, get_accumulator
from fpsim.arrays.reductions import cumsum, mean, sum as sum_of
from fpsim.backend import threads
from fpsim.numbers.formats import get_format
from fpsim.numbers.rounding import Rounding
from fpsim.sums.axes import _divided, fast_plan, mean_axes, sum_axes
from fpsim.sums.task import Sum
from tests import sums_oracle as oracle
from tests.strategies import nested_trees

ACCUMULATORS = [
    "fp16", "bf16", "fp32", "tf32", "e5m2", "e4m3fn", "e4m3fnuz", "e8m12", "fp16:pairwise", "bf16:lanes(3)",
    "fp16:split(2)", "e5m2:blocked(3)->fp32", "fp16:blocked(4)->e8m12", "fp32:split(2)->bf16",
    "fp16:lanes(4,pairwise):exact-products",
    "fp16:kahan", "bf16:neumaier", "exact",
]  # fmt: skip
TWO_LEAVES, FUSED = Tree.from_nested((0, 1)), Tree.from_nested((0, 1, 2, 3))
FORMATS = ["fp16", "fp32", "e5m2", "e4m3fnuz", "float4_e2m1fn"]


def same_bits(left, right):
    left, right = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    signs = [np.signbit(array) & ~np.isnan(array) for array in (left, right)]
    return np.array_equal(left, right, equal_nan=True) and np.array_equal(*signs)


def values_of(fmt, shape, seed, specials=True):
    """Values of a format over its range, with zeros of both signs, the largest, and what is not finite."""
    random = np.random.default_rng(seed)
    fmt = get_format(fmt)
    exponents = random.integers(max(fmt.emin - 3, -40), min(fmt.emax, 40) + 1, shape).astype(float)
    near = random.standard_normal(shape)
    far = random.choice([-1.0, 1.0], shape) * 2.0**exponents * (1 + random.random(shape))
    x = np.where(random.random(shape) < 0.6, near, far)
    edges = [0.0, -0.0, fmt.max_finite, -fmt.max_finite, fmt.min_subnormal, -fmt.min_subnormal]
    edges += [np.inf, np.nan] if specials and fmt.has_nan else []
    x = np.where(random.random(shape) < 0.1, random.choice(edges, shape), x)
    with np.errstate(all="ignore"):
        rounded = fpsim.round(x.astype(np.float32), fmt, "toward-zero")
    return rounded if specials else np.where(np.isfinite(rounded), rounded, np.float32(1))


@pytest.mark.parametrize("accumulate", ACCUMULATORS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_sums_are_those_of_the_definition(fmt, accumulate):
    accumulator, target = get_accumulator(accumulate), get_format(fmt)
    for terms in (1, 2, 9):
        x = values_of(fmt, (25, terms), terms)
        for mode in oracle.DETERMINISTIC if accumulate == "fp16" else [Rounding.NEAREST_EVEN, Rounding.DOWN]:
            want = []
            for row in x.tolist():
                total, held = oracle.total_of([(value, 1.0) for value in row], accumulator, target, mode)
                want.append(oracle.finished(total, held, target, mode))
            got = sum_of(x, 1, fmt=fmt, accumulate=accumulate, rounding=mode)
            assert same_bits(got, want), (mode, terms)
            assert same_bits(sum_of(np.ascontiguousarray(x.T), 0, fmt=fmt, accumulate=accumulate, rounding=mode), want)


@settings(max_examples=40, deadline=None)
@given(nested_trees(most=30, widest=2), st.sampled_from(["fp16", "bf16", "fp32", "e4m3", "e8m12"]), st.integers(0, 99))
def test_any_tree_sums_as_the_definition_says(nested, fmt, seed):
    accumulator, target = Accumulator(format=fmt, order=Tree.from_nested(nested)), get_format("fp16")
    mode = Rounding.NEAREST_EVEN
    x = values_of("fp16", (3, accumulator.order.parameters[0].leaves), seed)
    want = []
    for row in x.tolist():
        total, held = oracle.total_of([(value, 1.0) for value in row], accumulator, target, mode)
        want.append(oracle.finished(total, held, target, mode))
    assert same_bits(sum_of(x, 1, fmt="fp16", accumulate=accumulator), want)


def test_the_fast_kernels_serve_what_they_are_meant_for():
    single, double = np.dtype(np.float32), np.dtype(np.float64)
    expected = {("fp16", "fp16"): single, ("bf16", "fp32"): single, ("fp16", "e5m2"): single, ("fp32", "e8m12"): double,
                ("fp16", "tf32"): single}  # fmt: skip
    for (fmt, accumulate), dtype in expected.items():
        plan = fast_plan(single, Sum.of(get_format(fmt), get_accumulator(accumulate), Rounding.NEAREST_EVEN))
        assert plan is not None and plan.dtype == dtype
    for accumulate, mode in (("fp16", "up"), ("fp16:kahan", "nearest-even"), ("e4m3fnuz", "nearest-even")):
        assert fast_plan(single, Sum.of(get_format("fp16"), get_accumulator(accumulate), Rounding(mode))) is None


@pytest.mark.parametrize("accumulate", ["fp16", "fp32:pairwise", "fp16:kahan", "exact"])
def test_axes_and_layouts(accumulate):
    """The terms are in row-major order of the axes, wherever in memory they lie."""
    x = values_of("fp16", (4, 5, 3, 20), 0)
    layouts = [x, np.asfortranarray(x), x.transpose(2, 0, 3, 1).copy().transpose(1, 3, 0, 2)]
    layouts.append(np.flip(np.flip(x, 1).copy(), 1))
    layouts.append(np.repeat(x, 2, axis=3)[..., ::2])
    for count in range(5):
        for axes in itertools.combinations(range(4), count):
            kept = [axis for axis in range(4) if axis not in axes]
            lines = x.transpose(*kept, *axes).reshape(int(np.prod([x.shape[axis] for axis in kept])), -1)
            want = sum_of(lines.copy(), 1, fmt="fp16", accumulate=accumulate).reshape([x.shape[axis] for axis in kept])
            for layout in layouts:
                got = sum_of(layout, axes, fmt="fp16", accumulate=accumulate)
                assert got.shape == want.shape and same_bits(got, want), axes
            kept_dims = sum_of(x, axes, keepdims=True, fmt="fp16", accumulate=accumulate)
            assert kept_dims.shape == np.sum(x, axes, keepdims=True).shape
            assert same_bits(kept_dims.reshape(want.shape), want)
    assert same_bits(sum_of(x, -2, fmt="fp16", accumulate=accumulate), sum_of(x, 2, fmt="fp16", accumulate=accumulate))


@pytest.mark.parametrize("rounding, seed", [("nearest-even", None), ("up", None), ("stochastic", 7)])
def test_threads_and_layouts_never_change_a_bit(rounding, seed):
    x = values_of("fp16", (1500, 1100), 1, specials=False)
    results = []
    try:
        for count in (1, 2, 4):
            threads.set_num_threads(count)
            for array, axis in ((x, 1), (np.asfortranarray(x), 1), (np.ascontiguousarray(x.T), 0)):
                results.append(sum_of(array, axis, fmt="fp16", accumulate="fp16", rounding=rounding, seed=seed))
    finally:
        threads.set_num_threads(None)
    assert all(same_bits(result, results[0]) for result in results)


def test_stochastic_sums():
    x = np.full((200, 1000), fpsim.round(0.1, "fp16"), dtype=np.float32)
    first = sum_of(x, 1, fmt="fp16", accumulate="fp16", rounding="stochastic", seed=1)
    assert same_bits(first, sum_of(x, 1, fmt="fp16", accumulate="fp16", rounding="stochastic", seed=1))
    assert not same_bits(first, sum_of(x, 1, fmt="fp16", accumulate="fp16", rounding="stochastic", seed=2))
    assert len(set(first.tolist())) > 20  # every line draws for itself
    exact = float(x[0, 0]) * 1000
    # Each addition's error has mean 0 and is below one ulp of 64; this is six deviations of the mean of 200 lines.
    assert abs(first.mean() - exact) < 6 * 0.0625 * math.sqrt(1000 / 200)


@pytest.mark.parametrize("accumulate", ["fp16", "fp32", "bf16:pairwise", "e8m12", "fp16:blocked(4)->fp32"])
def test_means_are_those_of_the_definition(accumulate):
    accumulator, target = get_accumulator(accumulate), get_format("fp16")
    for terms in (1, 2, 7, 10, 255):
        x = values_of("fp16", (10, terms), terms, specials=False)
        for mode in oracle.DETERMINISTIC if accumulate == "fp16" else [Rounding.NEAREST_EVEN, Rounding.DOWN]:
            got = mean(x, 1, fmt="fp16", accumulate=accumulate, rounding=mode)
            for row, result in zip(x.tolist(), got.tolist(), strict=True):
                total, held = oracle.total_of([(value, 1.0) for value in row], accumulator, target, mode)
                if math.isfinite(total):
                    quotient = oracle.rounded(Fraction(total) / terms, held, mode, math.copysign(0.0, total))
                    total = quotient
                assert same_bits(result, oracle.finished(total, held, target, mode))


def test_means_of_long_axes_are_divided_right():
    """2^24 ulps of fp32 over counts that float64 quotients alone would round twice."""
    random = np.random.default_rng(3)
    for count in (3, 1_000_003, 16_777_213):
        total = np.float64(np.float32(random.standard_normal(200) * 1000))
        odd = _divided(total, count, get_format("fp32"))
        for value, quotient in zip(total.tolist(), odd.tolist(), strict=True):
            exact = Fraction(value) / count
            for mode in oracle.DETERMINISTIC:
                fmt = get_format("fp32")
                assert oracle.rounded(Fraction(quotient), fmt, mode) == oracle.rounded(exact, fmt, mode)


@pytest.mark.parametrize("accumulate", ["fp16", "fp32", "bf16", "e8m12", "e5m2", "e4m3fnuz"])
@pytest.mark.parametrize(
    "shape, axis", [((7, 40), 0), ((7, 40), 1), ((2, 5, 17), 1), ((3, 4, 2), 1), ((6,), 0), ((0, 3), 0), ((3, 0), 0)]
)
def test_prefix_sums_are_sums_of_prefixes(accumulate, shape, axis):
    x = values_of("fp16", shape, 5)
    for mode in ("nearest-even", "up", "odd"):
        got = cumsum(x, axis, fmt="fp16", accumulate=accumulate, rounding=mode)
        assert got.shape == x.shape
        for k in range(shape[axis]):
            want = sum_of(np.take(x, range(k + 1), axis), axis, fmt="fp16", accumulate=accumulate, rounding=mode)
            assert same_bits(np.take(got, k, axis), want)


def test_prefix_sums_in_stochastic_rounding_repeat():
    x = values_of("fp16", (5, 30), 5, specials=False)
    first, second = (cumsum(x, 1, fmt="fp16", accumulate="fp16", rounding="stochastic", seed=3) for _ in range(2))
    assert same_bits(first, second)
    assert same_bits(fpsim.round(first, "fp16"), first)


def test_numpy_float16_is_the_fp16_chain():
    x = values_of("fp16", (300, 500), 2, specials=False).astype(np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        assert same_bits(sum_of(x, 0, fmt="fp16", accumulate="fp16"), x.sum(axis=0))
        small = x / np.float16(1024) + np.float16(0)  # NumPy's first prefix is the first term, -0 too
        assert same_bits(cumsum(small, 0, fmt="fp16", accumulate="fp16"), np.cumsum(small, axis=0, dtype=np.float16))


def test_types_come_back():
    values = [0.5, 1.25, -3.0]
    assert type(sum_of(np.float32(0.5), fmt="fp16")) is np.float32
    assert type(sum_of(0.5, fmt="fp16")) is float
    for dtype in (np.float16, np.float32, np.float64):
        result = sum_of(np.array(values, dtype=dtype), fmt="fp16")
        assert result.dtype == dtype and result == -1.25
    for dtype in (torch.float16, torch.float32, torch.float64, torch.bfloat16):
        x = torch.tensor([values, values], dtype=dtype)
        for function in (sum_of, mean):
            result = function(x, 1, keepdims=True, fmt="e8m3" if dtype is torch.bfloat16 else "fp16")
            assert isinstance(result, torch.Tensor) and result.dtype == dtype and result.shape == (2, 1)
        assert cumsum(x, 1, fmt="e8m3" if dtype is torch.bfloat16 else "fp16").tolist() == [[0.5, 1.75, -1.25]] * 2
    assert sum_of(np.zeros((3, 0), np.float32), 1, fmt="fp16").tolist() == [0.0] * 3
    assert np.isnan(mean(np.zeros((3, 0), np.float32), 1, fmt="fp16")).all()
    assert sum_of(np.zeros((0, 3), np.float32), 1, fmt="fp16").shape == (0,)
    assert not np.signbit(sum_of(np.array([-0.0, -0.0], np.float32), fmt="fp16"))
    assert np.signbit(sum_of(np.array([-0.0, -0.0], np.float32), fmt="fp16", rounding="down"))


def test_internal_sums_keep_the_dtype():
    x = values_of("fp16", (5, 6), 0, specials=False).astype(np.float64)
    task = Sum.of(get_format("fp16"), get_accumulator("fp16"), Rounding.NEAREST_EVEN)
    for function in (sum_axes, mean_axes):
        assert function(task, x, (1,)).dtype == np.float64


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x: sum_of(x + 0.1, fmt="fp16"), ValueError, r"x\[0, 0\] = .* is no value of fp16; round it first"),
        (lambda x: sum_of(x, 2, fmt="fp16"), ValueError, "axis 2 is out of range for 2 axes"),
        (lambda x: sum_of(x, (0, -2), fmt="fp16"), ValueError, "names an axis twice"),
        (lambda x: sum_of(x, 0.5, fmt="fp16"), TypeError, "axis must be an integer"),
        (lambda x: sum_of(x, fmt="fp17"), ValueError, "unknown format 'fp17'"),
        (lambda x: sum_of(x, fmt="fp16", accumulate="fp16:zigzag"), ValueError, "unknown order 'zigzag'"),
        (lambda x: sum_of(x, fmt="fp16", rounding="sideways"), ValueError, "unknown rounding"),
        (lambda x: sum_of(x, fmt="fp16", rounding="stochastic"), ValueError, "needs seed"),
        (lambda x: sum_of(x, fmt="fp16", seed=3), ValueError, "has no use"),
        (lambda x: sum_of(x.astype(int), fmt="fp16"), TypeError, "must be float16, float32 or float64"),
        (lambda x: sum_of(x.astype(complex), fmt="fp16"), TypeError, "must be float16, float32 or float64"),
        (lambda x: sum_of("abc", fmt="fp16"), TypeError, "x must be"),
        (lambda x: sum_of(x, 1, fmt="fp16", accumulate=TWO_LEAVES), ValueError, "has 2 leaves, the sum has 4"),
        (lambda x: sum_of(x, fmt="e8m0fnu"), ValueError, "no zero|no value"),
        (lambda x: cumsum(x, 0, fmt="fp16", accumulate="fp16:pairwise"), ValueError, "cumsum is the sequential chain"),
        (lambda x: cumsum(x, 0, fmt="fp16", accumulate="exact"), ValueError, "cumsum is the sequential chain"),
        (lambda x: cumsum(x, None, fmt="fp16"), TypeError, "axis must be an integer"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((3, 4), dtype=np.float32))


def test_flush_to_zero_mode_is_refused():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    try:
        with pytest.raises(ValueError, match="flushes subnormal"):
            sum_of(np.ones(3, np.float32), fmt="fp16")
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("shape", [(5, 7), (200, 33), (3, 4, 50), (300, 16), (130, 1)])
def test_prefix_sums_along_memory_equal_numpy_float16(shape):
    x = np.random.default_rng(7).standard_normal(shape).astype(np.float16)
    got = fpsim.cumsum(x.astype(np.float32), -1, fmt="fp16", accumulate="fp16")
    assert np.array_equal(got, np.cumsum(x, axis=-1, dtype=np.float16).astype(np.float32))


def test_a_node_of_many_terms_rounds_their_exact_sum_once():
    accumulator = Accumulator(format="fp16", order=FUSED)
    x = np.array([[2048, 1, 1, 0.5], [60000, 60000, -60000, 1], [0.25, -0.25, 0.5, -0.5]], np.float32)
    assert sum_of(x, 1, fmt="fp16", accumulate=accumulator).tolist() == [2050.0, 60000.0, 0.0]
