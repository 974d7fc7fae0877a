"""Counters of products against exact rationals, one rounding at a time."""

from __future__ import annotations

import functools
import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import fpsim
from fpsim.accumulation import Accumulator, Tree, get_accumulator
from fpsim.backend import threads
from fpsim.numbers.formats import Format, get_format
from fpsim.numbers.rounding import Rounding, round_into
from fpsim.sums.observers.counters import SwampedAdditions
from fpsim.sums.product import product_into
from fpsim.sums.task import Sum
from tests import sums_oracle as oracle
from tests.frequency import often


@functools.cache
def unbounded_form(fmt: Format) -> Format:
    return fmt.replace(name="unbounded", emax=fmt.emax + 200, specials="ieee", saturate=False)


class Counting:
    """The counts of one element by the definitions: a rounding is asked what it did, an addition what it lost."""

    def __init__(self, fmt: Format, accumulator: Accumulator, mode: Rounding) -> None:
        self.fmt, self.accumulator, self.mode = fmt, accumulator, mode
        self.counters = fpsim.Counters()

    def rounded(self, exact: Any, fmt: Format) -> None:
        """Count what rounding an exact number (a Fraction or a float) did.

        Rounding is monotone: between the smallest normal number and the largest nothing over- or underflows.
        """
        if not oracle.is_finite(exact) or fmt.min_normal < abs(float(exact)) < fmt.max_finite:
            return
        unbounded = oracle.rounded(exact, unbounded_form(fmt), self.mode)
        self.counters.overflows += abs(unbounded) > fmt.max_finite
        self.counters.underflows += exact != 0 and oracle.rounded(exact, fmt, self.mode) == 0

    def add(self, left: Any, right: Any, fmt: Format, is_leaf: bool) -> float:
        result = oracle.add(left, right, fmt, self.mode)
        if oracle.is_finite(left) and oracle.is_finite(right):
            self.rounded(Fraction(left) + Fraction(right), fmt)
        self.counters.additions += 1
        if is_leaf:
            self.counters.swamped += bool(right != 0 and result == left)
        else:
            self.counters.swamped += bool(left != 0 and right != 0 and result in (left, right))
        if not math.isnan(result):
            self.counters.largest = max(self.counters.largest, abs(result))
        return result

    def leaf(self, left: float, right: float) -> Any:
        if self.accumulator.products == "rounded" and math.isfinite(left) and math.isfinite(right):
            self.rounded(Fraction(left) * Fraction(right), self.accumulator.format)
        return oracle.leaf(left, right, self.accumulator, self.mode)

    def tree(self, leaves: list[Any], tree: Tree) -> float:
        held, stack = self.accumulator.format, []
        for step in tree.steps.tolist():
            if step >= 0:
                stack.append(leaves[step])
            elif step == -2:
                stack.append(0.0)
            elif step == -1:
                right = stack.pop()
                stack.append(self.add(stack.pop(), right, held, False))
            else:
                stack.append(self.add(stack.pop(), leaves[-3 - step], held, True))
        return stack[0] if tree.steps[0] == -2 else self.add(0.0, stack[0], held, False)

    def __call__(self, xs: list[float], ys: list[float]) -> None:
        leaves = [self.leaf(x, y) for x, y in zip(xs, ys, strict=True)]
        accumulator, held = self.accumulator, self.accumulator.format
        if accumulator.promoted is None:
            total = self.tree(leaves, accumulator.order(len(leaves)))
        else:
            total, held = 0.0, accumulator.promoted
            for part in oracle.parts_of(accumulator.order, leaves):
                block = 0.0
                for leaf in part:
                    block = self.add(block, leaf, accumulator.format, True)
                if accumulator.rounds_parts:
                    block = self.add(block, math.copysign(0.0, block), held, False)
                total = self.add(total, block, held, False)
        if held != self.fmt:
            self.rounded(total, self.fmt)


def operands(fmt: Format, seed: int, special: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Values with rounding, overflow and underflow to be seen in every product."""
    generator = np.random.default_rng(seed)
    pair = []
    for shape in ((6, 9), (9, 5)):
        x = generator.standard_normal(shape)
        x *= 2.0 ** (generator.integers(fmt.emin // 2 - 1, max(1, fmt.emax // 2 + 1), shape) * generator.integers(0, 2, shape))
        x[generator.random(shape) < 0.15] = 0.0
        x[generator.random(shape) < 0.1] = -0.0
        if special:
            x[generator.random(shape) < 0.05] = math.inf if fmt.has_infinity else 1.0
            x[generator.random(shape) < 0.05] = math.nan
        round_into(x, x, fmt, Rounding.TOWARD_ZERO)
        pair.append(x)
    return pair[0], pair[1]


def check(fmt: Format, accumulator: Accumulator, mode: Rounding, a: np.ndarray, b: np.ndarray) -> None:
    counters, out, plain = fpsim.Counters(), np.empty((len(a), b.shape[1])), np.empty((len(a), b.shape[1]))
    task = Sum.of(fmt, accumulator, mode)
    product_into(task, a, b, out, observer=counters)
    product_into(task, a, b, plain)
    assert np.array_equal(out, plain, equal_nan=True)
    product_into(task, a, b, out, observer=(alone := SwampedAdditions()))
    assert np.array_equal(out, plain, equal_nan=True)
    wanted = Counting(fmt, accumulator, mode)
    for i, j in np.ndindex(*out.shape):
        wanted(a[i].tolist(), b[:, j].tolist())
    assert counters == wanted.counters, str(accumulator)
    assert (alone.additions, alone.swamped) == (counters.additions, counters.swamped), str(accumulator)


QUICK = [
    ("fp16", "fp16", "nearest-even"),
    ("fp16", "fp16:pairwise", "nearest-even"),
    ("fp16", "fp16:fma", "nearest-even"),
    ("fp16", "fp16", "down"),
    ("bf16", "bf16:lanes(2)", "nearest-even"),
    ("fp16", "fp32", "nearest-even"),
    ("e4m3fn", "e5m2:blocked(3)->fp16", "nearest-even"),
    ("fp16", "fp32:split(3)->fp16", "nearest-even"),
]
MODES = [str(mode.value) for mode in oracle.DETERMINISTIC]
FULL = [
    (fmt, accumulate, mode)
    for place, fmt in enumerate(("fp16", "bf16", "e4m3fn", "e5m2", "tf32", "fp32"))
    for accumulate in (fmt, f"{fmt}:fma", f"{fmt}:pairwise", f"{fmt}:pairwise:exact-products", "fp32", "fp16:blocked(4)->fp32")
    for number, mode in enumerate(MODES)
    if mode == "nearest-even" or (place + number) % 2 == 0
]


@pytest.mark.parametrize(("fmt", "accumulate", "mode"), QUICK)
def test_counts_equal_exact_rationals(fmt: str, accumulate: str, mode: str) -> None:
    for seed in range(3):
        a, b = operands(get_format(fmt), seed, special=seed == 2)
        check(get_format(fmt), get_accumulator(accumulate), Rounding(mode), a, b)
        tiny = np.zeros_like(a)
        tiny[0] = get_format(fmt).min_subnormal
        check(get_format(fmt), get_accumulator(accumulate), Rounding(mode), tiny, b)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("fmt", "accumulate", "mode"), FULL)
def test_counts_of_everything_equal_exact_rationals(fmt: str, accumulate: str, mode: str) -> None:
    for seed in range(3):
        a, b = operands(get_format(fmt), seed, special=seed == 2)
        check(get_format(fmt), get_accumulator(accumulate), Rounding(mode), a, b)


FAR = tuple(itertools.product(("fp16", "fp16:pairwise", "fp16:fma", "fp32", "e4m3"), MODES))


@pytest.mark.parametrize(
    ("accumulate", "mode"), often(FAR, lambda case: "nearest-even" in case or case in (("fp16", "up"), ("fp16", "odd")))
)
def test_sums_far_from_overflow_are_counted_exactly(accumulate: str, mode: str) -> None:
    """Terms of very different size, zeros of both signs, equal and opposite terms: what the quick kernel must tell apart."""
    fmt, generator = get_format("fp16"), np.random.default_rng(7)
    pair = []
    for shape in ((5, 41), (41, 35)):
        x = np.round(generator.standard_normal(shape) * 4) * 2.0 ** generator.integers(-9, 3, shape)
        x[generator.random(shape) < 0.1] = -0.0
        pair.append(fpsim.round(x, fmt))
    pair[0][:, 1::8], pair[1][1::8] = -pair[0][:, 0:40:8], pair[1][0:40:8]
    pair[0][:, 3::8], pair[1][3::8] = pair[0][:, 2:40:8], pair[1][2:40:8]
    check(fmt, get_accumulator(accumulate), Rounding(mode), pair[0], pair[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("accumulate", "mode"),
    often(
        itertools.product(("fp16", "fp16:pairwise", "bf16"), MODES),
        lambda case: "nearest-even" in case or case in (("fp16", "up"), ("fp16", "odd")),
    ),
)
def test_tiny_times_huge_underflows_where_the_product_does(accumulate: str, mode: str, dtype: type) -> None:
    """A factor of 2^-126 takes others of more than 2^100 below half of fp16's smallest number."""
    fmt, generator = get_format("bf16"), np.random.default_rng(11)
    for low in (-126, 85):
        pair = [
            np.ldexp(generator.integers(128, 256, shape) / 128.0, exponents + generator.integers(0, 17, shape))
            for shape, exponents in (((5, 23), low), ((23, 37), -41 - low))
        ]
        pair[0][generator.random((5, 23)) < 0.1] = 0.0
        for x in pair:
            x *= generator.choice([-1.0, 1.0], x.shape)
        check(fmt, get_accumulator(accumulate), Rounding(mode), *(x.astype(dtype) for x in pair))


def test_counts_do_not_depend_on_threads_or_tiles_done_again() -> None:
    a, b = (fpsim.round(np.random.default_rng(i).standard_normal((256, 256)) * 60, "fp16") for i in range(2))
    found = []
    try:
        for count in (1, 3):
            threads.set_num_threads(count)
            found.append(fpsim.Counters())
            fpsim.matmul(a, b, fmt="fp16", accumulate="fp16", counters=found[-1])
    finally:
        threads.set_num_threads(None)
    parts = fpsim.Counters()
    for row in a:
        fpsim.matmul(row, b, fmt="fp16", accumulate="fp16", counters=parts)
    assert found[0] == found[1] == parts
    assert parts.overflows > 0 and parts.swamped > 0 and parts.largest == math.inf and parts.additions == 256**3


def test_stochastic_counts_are_those_of_the_draws_made() -> None:
    """Chains of ones: 2048 + 1 either stays, which is a lost addition, or becomes 2050."""
    ones = np.ones((1, 3000), np.float32)
    counters = fpsim.Counters()
    total = fpsim.dot(ones[0], ones[0], fmt="fp16", accumulate="fp16", rounding="stochastic", seed=4, counters=counters)
    assert 2048 + 2 * (3000 - 2048 - counters.swamped) == total == counters.largest


def test_objects_accumulate_and_can_be_merged() -> None:
    x, counters = np.full(3000, 1.0, np.float32), fpsim.Counters()
    for _ in range(2):
        fpsim.dot(x, x, fmt="fp16", accumulate="fp16", counters=counters)
    assert counters == fpsim.Counters(additions=6000, swamped=2 * 952, largest=2048.0)
    counters.add(fpsim.Counters(overflows=1, largest=math.inf))
    assert counters.overflows == 1 and counters.largest == math.inf
    counters.clear()
    assert counters == fpsim.Counters()


def test_addend_and_last_rounding_are_counted() -> None:
    x, counters = np.full((1, 4), 256.0, np.float32), fpsim.Counters()
    fpsim.matmul(x, x.T, fmt="fp16", addend=np.full((1, 1), 2.0**-24, np.float32), counters=counters)
    assert (counters.additions, counters.swamped, counters.overflows) == (5, 1, 1)


@pytest.mark.parametrize("accumulate", ["exact", "native", "fp16:kahan", "fp16:neumaier"])
def test_what_is_no_tree_of_additions_is_refused(accumulate: str) -> None:
    x = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="counters count the additions of a tree"):
        fpsim.matmul(x, x, fmt="fp16", accumulate=accumulate, counters=fpsim.Counters())
    with pytest.raises(TypeError, match="counters must be a Counters"):
        fpsim.matmul(x, x, fmt="fp16", counters={})  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["fp16", "e5m2:pairwise", "e4m3fn:blocked(2)->fp16"])
def test_sums_and_means_count_what_products_with_ones_do(text: str) -> None:
    fmt, accumulator = get_format("fp16"), get_accumulator(text)
    generator = np.random.default_rng(3)
    x = fpsim.round((generator.standard_normal((3, 6, 2)) * 2.0 ** generator.integers(-12, 9, (3, 6, 2))), fmt)
    counted, wanted, means = fpsim.Counters(), Counting(fmt, accumulator, Rounding.NEAREST_EVEN), fpsim.Counters()
    sums = fpsim.sum(x, 1, fmt=fmt, accumulate=accumulator, counters=counted)
    fpsim.mean(x, 1, fmt=fmt, accumulate=accumulator, counters=means)
    for line in np.moveaxis(x, 1, 2).reshape(6, 6).tolist():
        wanted(line, [1.0] * 6)
    assert counted == wanted.counters
    assert sums.shape == (3, 2)
    assert (means.additions, means.swamped, means.largest) == (counted.additions, counted.swamped, counted.largest)


def test_convolutions_count_every_term() -> None:
    fmt, accumulator = get_format("fp16"), get_accumulator("e5m2")
    generator = np.random.default_rng(4)
    x = fpsim.round(generator.standard_normal((2, 2, 5)) * 2.0 ** generator.integers(-9, 6, (2, 2, 5)), fmt)
    weight = fpsim.round(generator.standard_normal((3, 2, 3)) * 2.0 ** generator.integers(-9, 6, (3, 2, 3)), fmt)
    how = {"stride": 2, "padding": 1, "fmt": fmt, "accumulate": accumulator}
    forward, backward = fpsim.Counters(), fpsim.Counters()
    out = fpsim.conv(x, weight, counters=forward, **how)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1)))
    wanted = Counting(fmt, accumulator, Rounding.NEAREST_EVEN)
    for image in range(2):
        for place in range(out.shape[2]):
            patch = padded[image, :, 2 * place : 2 * place + 3].reshape(-1)
            for kernel in weight.reshape(3, -1):
                wanted(kernel.tolist(), patch.tolist())
    assert forward == wanted.counters
    fpsim.conv_input_gradient(out, weight, x.shape, counters=backward, **how)
    assert backward.additions == x.size * 3 * 3  # the zeros between strides are terms


def test_bad_counters_are_refused_by_name() -> None:
    x = np.ones((2, 1, 3), np.float32)
    with pytest.raises(TypeError, match="counters must be a Counters"):
        fpsim.sum(x, fmt="fp16", counters={})
    with pytest.raises(ValueError, match="rounds once"):
        fpsim.mean(x, fmt="fp16", accumulate="exact", counters=fpsim.Counters())
    with pytest.raises(ValueError, match="lose what others make good"):
        fpsim.conv(x, x, fmt="fp16", accumulate="fp16:kahan", counters=fpsim.Counters())
