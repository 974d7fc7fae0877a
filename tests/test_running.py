"""Running error bounds: never violated, tight, infinite after overflow; probabilistic ones as often as they say."""

from fractions import Fraction as F
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

import fpsim
from fpsim import bounds
from fpsim.accumulation import get_accumulator
from fpsim.numbers.formats import get_format
from fpsim.numbers.rounding import Rounding, get_rounding, seed_key
from fpsim.sums.observers.error_sums import Kept, error_sums, error_sums_of_stack
from fpsim.sums.product import product_into
from fpsim.sums.task import Draws, Sum
from tests.hard_sums import KINDS, exact_sums, hard_operands
from tests.test_bounds import cases, made, unconfirmed

FP16 = get_format("fp16")
FLUSHING = FP16.replace(name="fp16 flushing", flush="after", flush_inputs=True)
SATURATING = FP16.replace(name="fp16 saturating", saturate=True)


def check(result, bound, sums, extra=None):
    """Every element keeps its bound, or has none because something overflowed."""
    for i, j, total, _ in sums:
        if bound[i, j] == inf:
            continue
        exact = total + (F(0) if extra is None else F(float(extra[i, j])))
        assert abs(F(float(result[i, j])) - exact) <= F(float(bound[i, j]))


@unconfirmed
@settings(max_examples=200, deadline=None)
@given(cases(), st.booleans())
def test_no_running_bound_is_violated(case, with_addend):
    fmt, *_, seed = case
    extra = made(fmt, get_accumulator("fp32"), "nearest-even", "wide", 1, seed)[2] if with_addend else None
    a, b, (result, bound) = made(*case, addend=extra, error_bound=True)
    plain = made(*case, addend=extra)[2]
    assert np.array_equal(result, plain, equal_nan=True)
    assert bound.shape == result.shape and bound.dtype == np.float64 and not np.isnan(bound).any()
    check(result, bound, exact_sums(a, b), extra)


@pytest.mark.parametrize("accumulate", [FLUSHING, SATURATING, get_format("fp32")], ids=str)
@pytest.mark.parametrize("fmt", [FP16, FLUSHING, SATURATING], ids=str)
def test_flushing_and_saturation_are_bounded(fmt, accumulate):
    for seed, kind in enumerate(KINDS):
        a, b = hard_operands(kind, fmt, accumulate, 4, 9, 4, seed)
        result, bound = fpsim.matmul(a, b, fmt=fmt, accumulate=accumulate, error_bound=True)
        check(result, bound, exact_sums(a, b))


def test_overflow_has_no_bound_whatever_comes_after():
    """A saturated partial sum is finite, and so is what is added to it later."""
    a = np.array([[60000.0, 60000.0, -60000.0, 1.0], [60000.0, 1.0, -60000.0, 1.0]])
    b = np.ones((4, 1))
    for held in (SATURATING, FP16):
        _, bound = fpsim.matmul(a, b, fmt="fp16", accumulate=held, error_bound=True)
        assert bound[0, 0] == inf and np.isfinite(bound[1, 0])
    assert np.isfinite(fpsim.matmul(a, b, fmt="fp16", accumulate=SATURATING)).all()
    extra = np.full((1, 1), 1e6)  # saturates on its way in
    assert fpsim.matmul(-b.T, b, fmt="fp32", accumulate=SATURATING, addend=extra, error_bound=True)[1] == inf
    assert fpsim.cumsum(np.array([-8.0, 1e6, 1.0]), 0, fmt="fp32", accumulate=SATURATING, error_bound=True)[1][2] == inf
    for accumulate in ("fp16", "fp32", "h100:fp16", "fp16:kahan", "exact"):
        for value in (np.nan, np.inf):
            x = np.array([value, 1.0])
            assert fpsim.dot(x, np.ones(2), fmt="fp16", accumulate=accumulate, error_bound=True)[1] == inf


@pytest.mark.parametrize("mode", ["nearest-even", "toward-zero", "stochastic"])
@pytest.mark.parametrize("accumulate", ["fp16", "bf16:pairwise", "fp32", "fp16:fma"])
def test_what_is_watched_is_what_is_computed(accumulate, mode):
    """The product beside the sums of powers is the product itself, in narrow and in wide carriers."""
    accumulator, rounding = get_accumulator(accumulate), get_rounding(mode)
    seed = 3 if mode == "stochastic" else None
    for kind in ("plain", "huge"):
        a, b = (x.astype(np.float32) for x in hard_operands(kind, FP16, accumulator.format, 5, 21, 40, 1))
        task, draws = Sum.of(FP16, accumulator, rounding), Draws(seed_key(rounding, seed), 0, 40)
        (watched,) = error_sums(task, a, b, draws, Kept())
        expected = np.empty((5, 40))
        product_into(task, a.astype(np.float64), b.astype(np.float64), expected, draws)
        found = fpsim.round(watched.product.astype(np.float64), "fp16", mode, seed=seed)
        if mode != "stochastic" or accumulator.format == FP16:  # the last rounding draws for itself
            assert np.array_equal(found, expected, equal_nan=True)
        powers = _powers_of_a_chain(a, b, accumulator.format) if accumulate == "fp16" and mode == "nearest-even" else None
        if powers is not None:
            assert np.array_equal(watched.kept, powers)


def _powers_of_a_chain(a, b, held):
    """The sums of ufp over products and partial sums, one rounding at a time; inf where one reached the top."""
    total, kept = np.zeros((len(a), b.shape[1])), np.zeros((len(a), b.shape[1]))
    for k in range(a.shape[1]):
        product = fpsim.round(np.multiply.outer(a[:, k].astype(np.float64), b[k].astype(np.float64)), held)
        with np.errstate(invalid="ignore"):
            total = fpsim.round(total + product, held)
        for value, least in ((product, held.min_normal), (total, 0.0)):
            with np.errstate(divide="ignore"):
                power = np.where(value == 0, 0.0, np.exp2(np.floor(np.log2(np.abs(value)))))
            power = np.where(np.abs(value) < held.max_finite, np.maximum(power, least), inf)
            kept += np.where(np.multiply.outer(a[:, k], b[k]) == 0, 0.0, power)
    return kept


# Sums


@pytest.mark.parametrize("accumulate", ["fp16", "fp16:pairwise", "fp32", "exact", "native", "h100", "fp16:kahan"])
@pytest.mark.parametrize("mode", ["nearest-even", "up"])
def test_sums_and_means_keep_their_bounds(accumulate, mode):
    if accumulate == "native" and mode == "up":
        pytest.skip("the library rounds to nearest")
    for kind in ("wide", "cancelling", "tiny"):
        x = hard_operands(kind, FP16, FP16, 12, 9, 1, 5)[0].reshape(3, 4, 9).astype(np.float32)
        how = {"fmt": "fp16", "accumulate": accumulate, "rounding": mode, "error_bound": True}
        for axis in (2, (0, 2), None):
            for function, share in ((fpsim.sum, 1), (fpsim.mean, x.size // np.sum(x, axis=axis).size)):
                result, bound = function(x, axis, **how)
                exact = np.sum(x.astype(np.float64), axis=axis) / share  # exact to 2^-45, and so compared
                assert np.all(np.abs(result - exact) <= bound * (1 + 2.0**-30) + 2.0**-45 * np.abs(x).sum()), (kind, axis)
                assert np.shape(bound) == np.shape(result)
    result, bound = fpsim.sum(x, 1, keepdims=True, **how)
    assert bound.shape == result.shape == (3, 1, 9)


@pytest.mark.parametrize(
    "fmt, accumulate", [("fp16", "fp16"), ("fp16", "fp32"), ("fp32", "fp16"), (SATURATING, "fp16")], ids=str
)
def test_prefix_sums_keep_their_bounds(fmt, accumulate):
    for kind in KINDS:
        x = hard_operands(kind, get_format(fmt), FP16, 3, 25, 1, 7)[0]
        result, bound = fpsim.cumsum(x, 1, fmt=fmt, accumulate=accumulate, error_bound=True)
        for i, row in enumerate(x.tolist()):
            exact = F(0)
            for k, value in enumerate(row):
                exact += F(value)
                assert bound[i, k] == inf or abs(F(float(result[i, k])) - exact) <= F(float(bound[i, k]))


def test_tensors_get_tensors():
    import torch

    a, b = torch.ones(3, 4), torch.ones(4, 2)
    result, bound = fpsim.matmul(a, b, fmt="fp16", error_bound=True)
    assert result.dtype == torch.float32 and bound.dtype == torch.float64 and bound.shape == (3, 2)
    result, bound = fpsim.sum(a, 0, fmt="fp16", error_bound=True)
    assert bound.dtype == torch.float64 and bound.shape == (4,)


def test_batches_and_vectors_have_bounds_of_their_shape():
    a, b = np.ones((5, 1, 3, 4)), np.ones((2, 4, 6))
    result, bound = fpsim.matmul(a, b, fmt="fp16", accumulate="fp16", error_bound=True)
    assert result.shape == bound.shape == (5, 2, 3, 6)
    result, bound = fpsim.matmul(a, b[0, :, 0], fmt="fp16", error_bound=True)
    assert result.shape == bound.shape == (5, 1, 3)
    result, bound = fpsim.dot(a[0, 0, 0], b[0, :, 0], fmt="fp16", error_bound=True)
    assert result == 4 and 0 < bound < 1 and np.ndim(bound) == 0
    assert (fpsim.matmul(np.ones((2, 0)), np.ones((0, 3)), fmt="fp16", error_bound=True)[1] < 2.0**-20).all()


def test_what_cannot_be_asked_for():
    for wrong in (1.0, 0.0, 1, "yes", None):
        with pytest.raises(ValueError, match="error_bound is False, True or a probability"):
            fpsim.dot(np.ones(2), np.ones(2), fmt="fp16", error_bound=wrong)
    with pytest.raises(ValueError, match="errs to one side"):
        fpsim.dot(np.ones(2), np.ones(2), fmt="fp16", accumulate="fp16", rounding="up", error_bound=0.9)
    with pytest.raises(ValueError, match="cumsum"):
        fpsim.cumsum(np.ones(2), 0, fmt="fp16", error_bound=0.9)


# Tightness and probability


def draws_of(data, rows, terms, columns, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((rows, terms)), rng.standard_normal((terms, columns))
    if data == "uniform":
        a, b = rng.random((rows, terms)), rng.random((terms, columns))
    if data == "relu":
        a = np.maximum(a, 0)
    return tuple(fpsim.round(x.astype(np.float32), "fp16") for x in (a, b))


def errors(a, b, result):
    return np.abs(result - a.astype(np.float64) @ b.astype(np.float64))  # exact to 2^-40 of the terms: they have 22 bits


@pytest.mark.parametrize("data", ["normal", "uniform", "relu"])
def test_running_bounds_are_tight(data):
    """Mean bound / mean error over 1024 dot products of 1024 terms in fp16."""
    a, b = draws_of(data, 32, 1024, 32, 1)
    ratios = []
    for asked in (True, 0.999):
        result, bound = fpsim.matmul(a, b, fmt="fp16", accumulate="fp16", error_bound=asked)
        ratios.append(bound.mean() / errors(a, b, result).mean())
        assert (errors(a, b, result) <= bound).all()
    assert ratios[0] <= 100 and ratios[1] <= 15


def test_running_bounds_are_attained():
    """Halved they fail: every addition of half an ulp loses all of it. A product's own rounding is counted only if made."""
    u = FP16.unit_roundoff
    x = np.array([1.0] + [u] * 200)
    result, bound = fpsim.sum(x, fmt="fp16", accumulate="fp16", error_bound=True)
    assert bound / 2 < x.sum() - result <= bound
    upward = np.array([1.0] + [2.0**-20] * 200)
    result, bound = fpsim.sum(upward, fmt="fp16", accumulate="fp16", rounding="up", error_bound=True)
    assert bound / 2 < result - upward.sum() <= bound


SAMPLES, FAILURE = 2000, 0.1
#: More failures than this come with probability 1e-6 when bounds fail as often as they say ...
ALLOWED = int(stats.binom.ppf(1 - 1e-6, SAMPLES, FAILURE))


def test_the_power_of_the_counts_below():
    """... and fewer with probability below 1e-6 when they fail twice as often."""
    assert stats.binom.cdf(ALLOWED, SAMPLES, 2 * FAILURE) < 1e-6


@pytest.mark.parametrize("mode", ["stochastic", "nearest-even"])
@pytest.mark.parametrize("accumulate", ["fp16", "fp16:pairwise", "bf16", "fp16:blocked(32)->fp32", "fp32:split(8)->bf16"])
def test_probabilistic_bounds_fail_no_more_often_than_stated(accumulate, mode):
    """A theorem for stochastic rounding; for nearest a model that data of mean zero satisfy."""
    a, b = draws_of("normal", 40, 96, SAMPLES // 40, 2)
    how = {"fmt": "fp16", "accumulate": accumulate, "rounding": mode, "seed": 5 if mode == "stochastic" else None}
    result, bound = fpsim.matmul(a, b, error_bound=1 - FAILURE, **how)
    error = errors(a, b, result)
    assert (error > bound).sum() <= ALLOWED
    before = bounds.probabilistic_bound("fp16", accumulate, 96, mode, confidence=1 - FAILURE)
    store = bounds.rounding_bound("fp16", mode, held=before.format)
    sizes = np.abs(a).astype(np.float64) @ np.abs(b)
    assert (error > before.error(sizes) + store.error(np.abs(result))).sum() <= ALLOWED
    assert bounds.probabilistic_bound("fp16", accumulate, 96, mode).is_theorem == (mode == "stochastic")


def test_a_bound_that_promised_too_much_would_be_caught():
    """A tenth of the stochastic bound fails far more often than it may."""
    a, b = draws_of("normal", 40, 96, SAMPLES // 40, 2)
    result, bound = fpsim.matmul(
        a, b, fmt="fp16", accumulate="fp16", rounding="stochastic", seed=5, error_bound=1 - FAILURE
    )  # fmt: skip
    assert (errors(a, b, result) > bound / 10).sum() > ALLOWED


def test_stagnation_refutes_the_model_of_nearest_rounding():
    """fp16 sums of 4096 times 0.1 stop at 256: every error has one sign. The theorem for stochastic rounding stands."""
    x = np.full(4096, fpsim.round(0.1, "fp16"))
    exact = float(x.sum())
    how = {"fmt": "fp16", "accumulate": "fp16"}
    stuck, model = fpsim.sum(x, **how, error_bound=0.999)
    assert stuck == 256 and abs(stuck - exact) > model
    before = bounds.probabilistic_bound("fp16", "fp16", 4096, "nearest-even", products=False)
    assert abs(stuck - exact) > before.error(exact) and not before.is_theorem
    assert abs(stuck - exact) <= fpsim.sum(x, **how, error_bound=True)[1], "what always holds, holds here"
    moving, bound = fpsim.sum(x, **how, rounding="stochastic", seed=1, error_bound=0.999)
    assert abs(moving - exact) <= bound
    before = bounds.probabilistic_bound("fp16", "fp16", 4096, products=False)
    assert before.is_theorem and abs(moving - exact) <= before.error(exact)


def test_the_bias_of_draws_is_added():
    with_bias, without = (
        bounds.probabilistic_bound("fp16", "fp16", 256, mode).relative for mode in ("stochastic", "nearest-even")
    )
    height = 256  # a product's rounding and 255 additions
    assert with_bias - without >= height * 2.0**-32 * 2 * FP16.unit_roundoff


@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize(
    "shapes", [((6, 32, 16), (6, 16, 32)), ((3, 7, 20), (3, 20, 5)), ((2, 1, 9), (2, 9, 40)), ((0, 4, 3), (0, 3, 33))]
)
@pytest.mark.parametrize(
    ("accumulate", "mode"),
    [("fp16", "nearest-even"), ("fp16:pairwise", "toward-zero"), ("fp16:fma", "down"), ("fp32", "nearest-even")],
)
def test_a_stack_is_watched_as_its_matrices_are(accumulate, mode, shapes, squares):
    fmt, accumulator, rounding = fpsim.get_format("fp16"), get_accumulator(accumulate), Rounding(mode)
    generator = np.random.default_rng(0)
    a, b = (fpsim.round(generator.standard_normal(shape).astype(np.float32), "fp16") for shape in shapes)
    task, what = Sum.of(fmt, accumulator, rounding), Kept(squares)
    stack = error_sums_of_stack(task, a, b, what)
    own = [next(error_sums(task, *pair, Draws(), what)) for pair in zip(a, b, strict=True)]
    if stack is None:  # float64 is the kernel's carrier here
        assert not own or own[0].product.dtype == np.float64
        return
    assert stack.product.shape == stack.kept.shape == (*a.shape[:2], b.shape[2])
    for i, one in enumerate(own):
        assert one.excess == stack.excess
        assert np.array_equal(one.product, stack.product[i]) and np.array_equal(one.kept, stack.kept[i])


def test_a_stack_with_an_overflow_is_left_to_its_matrices():
    a = np.full((2, 8, 64), 1.0, np.float32)
    b = np.full((2, 64, 32), 2048.0, np.float32)
    b[0] = 1.0
    out, bound = fpsim.matmul(a, b, fmt="fp16", accumulate="fp16", error_bound=True)
    assert np.isinf(out[1]).all() and np.isinf(bound[1]).all() and np.isfinite(bound[0]).all()
    task = Sum.of(FP16, get_accumulator("fp16"), Rounding.NEAREST_EVEN)
    assert error_sums_of_stack(task, a, b, Kept()) is None
    assert error_sums_of_stack(task, a[:1], b[:1], Kept()) is not None
