"""matmul and dot against exact rationals, NumPy float16 and torch.half; laws of kernels and of bad input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import fpsim
from fpsim.accumulation import Accumulator, Tree, get_accumulator
from fpsim.backend import threads
from fpsim.numbers.formats import Format, get_format
from fpsim.numbers.rounding import Rounding, round_into
from fpsim.sums.additions import add_rounded
from fpsim.sums.product import product_into
from fpsim.sums.schemes import scheme
from fpsim.sums.task import Draws, Sum
from tests import sums_oracle
from tests.draws import draw_of
from tests.frequency import often
from tests.strategies import nested_trees

NAN, INF = float("nan"), float("inf")
KEY = 12345


def draws_of(mode: Rounding, out: np.ndarray) -> Draws:
    return Draws(KEY if mode is Rounding.STOCHASTIC else 0, 0, out.shape[1])


FORMATS = [
    get_format(name) for name in ("fp16", "bf16", "fp32", "tf32", "e5m2", "e4m3fn", "e4m3fnuz", "float4_e2m1fn", "e6m9")
] + [
    get_format("fp16").replace(name="fp16 flushed after", flush="after"),
    get_format("e4m3").replace(name="e4m3 flushed before", flush="before"),
    get_format("fp16").replace(name="fp16 saturating", saturate=True),
]
TREES = ("", ":fma", ":pairwise", ":pairwise:exact-products", ":blocked(3)", ":lanes(2)")


# An obvious oracle: numbers are Fractions, one rounding is one function.


def rounded(value: Fraction, negative_zero: bool, fmt: Format, mode: Rounding, draw: int | None = None) -> float:
    """One exact number rounded as semantics defines it."""
    if value == 0:
        return -0.0 if negative_zero and fmt.has_negative_zero else 0.0
    negative, size = value < 0, abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    if fmt.flush == "before" and size < Fraction(2) ** fmt.emin:
        return -0.0 if negative else 0.0
    quantum = Fraction(2) ** ((exponent if fmt.flush else max(exponent, fmt.emin)) - fmt.precision + 1)
    count, rest = divmod(size, quantum)
    part, top = rest / quantum, Fraction(fmt.max_finite)
    lower, upper = count * quantum, (count + 1) * quantum
    if mode is Rounding.STOCHASTIC:
        beyond = Fraction(2) ** (fmt.emax + 1)
        if size > top:
            lower, upper, part = top, beyond, (size - top) / (beyond - top)
        assert draw is not None
        result = upper if size >= beyond or draw < math.floor(part * 2**32) else lower
    else:
        half = Fraction(1, 2)
        climbs = {
            Rounding.NEAREST_EVEN: part > half or (part == half and count % 2 == 1),
            Rounding.NEAREST_AWAY: part >= half,
            Rounding.TOWARD_ZERO: False,
            Rounding.UP: not negative,
            Rounding.DOWN: negative,
            Rounding.ODD: count % 2 == 0,
        }[mode]
        result = upper if part and climbs else lower
    sign = -1.0 if negative else 1.0
    if result > top:
        inward = mode in (Rounding.TOWARD_ZERO, Rounding.ODD) or mode is (Rounding.UP if negative else Rounding.DOWN)
        return sign * (fmt.max_finite if inward else infinity_of(fmt))
    if fmt.flush and result < Fraction(2) ** fmt.emin:
        result = Fraction(0)
    return sign * float(result) if result or fmt.has_negative_zero else 0.0


def infinity_of(fmt: Format) -> float:
    return fmt.max_finite if fmt.saturate else INF if fmt.has_infinity else NAN


class Exact:
    """A number: a Fraction and the sign of a zero, or an infinity or NaN."""

    def __init__(self, value: Fraction, negative: bool, special: float | None = None):
        self.value, self.negative, self.special = value, negative, special

    @staticmethod
    def of(x: Any) -> Exact:
        if isinstance(x, Exact):
            return x
        finite = math.isfinite(x)
        return Exact(Fraction(x) if finite else Fraction(0), math.copysign(1, x) < 0, None if finite else x)

    @staticmethod
    def product(x: float, y: float) -> Exact:
        if math.isfinite(x) and math.isfinite(y):
            return Exact(Fraction(x) * Fraction(y), math.copysign(1, x) != math.copysign(1, y))
        return Exact(Fraction(0), False, x * y)

    def rounded(self, fmt: Format, mode: Rounding, draw: int | None) -> float:
        if self.special is not None:
            return self.special if math.isnan(self.special) else math.copysign(1, self.special) * infinity_of(fmt)
        return rounded(self.value, self.negative, fmt, mode, draw)


def added(terms: Sequence[Any], fmt: Format, mode: Rounding, draw: int | None = None) -> float:
    """The exact sum of two terms or more, rounded once."""
    exact = [Exact.of(term) for term in terms]
    special = [term.special for term in exact if term.special is not None]
    if special:
        return Exact(Fraction(0), False, sum(special)).rounded(fmt, mode, draw)
    value = sum((term.value for term in exact), Fraction(0))
    zeros = {term.negative for term in exact if term.value == 0}
    one_sign = len(zeros) == 1 and all(term.value == 0 for term in exact)
    return Exact(value, zeros.pop() if one_sign else mode is Rounding.DOWN).rounded(fmt, mode, draw)


class Oracle:
    """One element of a product, step by step; `element` is its row-major number."""

    def __init__(self, fmt: Format, accumulator: Accumulator, mode: Rounding, element: int):
        self.fmt, self.accumulator, self.mode = fmt, accumulator, mode
        self.element = np.int64(element)

    def draw(self, step: int) -> int | None:
        return draw_of(np.uint64(KEY), self.element, np.uint32(step)) if self.mode is Rounding.STOCHASTIC else None

    def add(self, left: Any, right: Any, step: int, fmt: Format | None = None) -> float:
        return self.add_all((left, right), step, fmt)

    def add_all(self, terms: Sequence[Any], step: int, fmt: Format | None = None) -> float:
        return added(terms, fmt or self.accumulator.format, self.mode, self.draw(step))

    def leaf(self, k: int, x: float, y: float) -> Any:
        product = Exact.product(x, y)
        if self.accumulator.products != "rounded":
            return product
        return product.rounded(self.accumulator.format, self.mode, self.draw(2**31 + k))

    def __call__(self, xs: list[float], ys: list[float]) -> float:
        kind = self.accumulator.kind
        if kind == "exact":
            return self.exact([Exact.product(x, y) for x, y in zip(xs, ys, strict=True)])
        leaves = [self.leaf(k, x, y) for k, (x, y) in enumerate(zip(xs, ys, strict=True))]
        held = self.accumulator.promoted or self.accumulator.format
        if kind in ("kahan", "neumaier"):
            total = self.kahan(leaves) if kind == "kahan" else self.neumaier(leaves)
        else:
            total = self.promoted(leaves) if self.accumulator.promoted else self.tree(leaves)
        return total if held == self.fmt else Exact.of(total).rounded(self.fmt, self.mode, None)

    def tree(self, leaves: list[Any]) -> float:
        tree = self.accumulator.order(len(leaves))
        numbers = iter(range(2 * len(leaves) + 8))
        total = tree.evaluate(leaves, lambda *terms: self.add_all(terms, next(numbers)), zero=0.0)
        return total if tree.steps[0] == -2 else self.add(0.0, total, tree.nodes)

    def promoted(self, leaves: list[Any]) -> float:
        total, step = 0.0, 0
        for part in sums_oracle.parts_of(self.accumulator.order, leaves):
            block = 0.0
            for leaf in part:
                block, step = self.add(block, leaf, step), step + 1
            if self.accumulator.rounds_parts:
                block, step = self.add(block, math.copysign(0.0, block), step, self.accumulator.promoted), step + 1
            total, step = self.add(total, block, step, self.accumulator.promoted), step + 1
        return total

    def kahan(self, leaves: list[Any]) -> float:
        total = lost = 0.0
        for k, leaf in enumerate(leaves):
            wanted = self.add(leaf, -lost, 4 * k)
            new = self.add(total, wanted, 4 * k + 1)
            lost = self.add(self.add(new, -total, 4 * k + 2), -wanted, 4 * k + 3)
            total = new
        return total

    def neumaier(self, leaves: list[Any]) -> float:
        total = lost = 0.0
        for k, leaf in enumerate(leaves):
            new = self.add(total, leaf, 4 * k)
            high, low = (total, leaf) if abs(total) >= abs(leaf) else (leaf, total)
            lost = self.add(lost, self.add(self.add(high, -new, 4 * k + 1), low, 4 * k + 2), 4 * k + 3)
            total = new
        return self.add(total, lost, 4 * len(leaves))

    def exact(self, terms: list[Exact]) -> float:
        special = [term.special for term in terms if term.special is not None]
        if special:
            return Exact(Fraction(0), False, sum(special)).rounded(self.fmt, self.mode, None)
        total = sum((term.value for term in terms), Fraction(0))
        return rounded(total, self.mode is Rounding.DOWN, self.fmt, self.mode, self.draw(0))


def same(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return np.isnan(got) & np.isnan(wanted) | (got == wanted) & (np.signbit(got) == np.signbit(wanted))


def cases(fmt: Format, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ordinary values, some near overflow, some near underflow, and infinities and NaN."""
    generator = np.random.default_rng(seed)
    scales = (1.0, fmt.max_finite**0.5, 2.0 ** (fmt.emin / 2), 1.0)
    shapes = ((2, 7, 3), (1, 6, 5), (4, 5, 1), (3, 1, 2))
    found = []
    for number, (scale, (rows, leaves, columns)) in enumerate(zip(scales, shapes, strict=True)):
        pair = []
        for shape in ((rows, leaves), (leaves, columns)):
            x = generator.standard_normal(shape) * scale * np.exp2(generator.integers(-4, 4, shape))
            x[generator.random(shape) < 0.1] = -0.0
            if number == 3:
                x[generator.random(shape) < 0.2] = INF if fmt.has_infinity else 1.0
                x[generator.random(shape) < 0.1] = NAN
            round_into(x, x, fmt, Rounding.TOWARD_ZERO)
            pair.append(x)
        found.append((pair[0], pair[1]))
    return found


def check(fmt: Format, accumulator: Accumulator, mode: Rounding, seed: int = 0) -> None:
    for a, b in cases(fmt, seed):
        out = np.empty((a.shape[0], b.shape[1]))
        product_into(Sum.of(fmt, accumulator, mode), a, b, out, draws_of(mode, out))
        wanted = np.empty(out.shape)
        for number, (i, j) in enumerate(np.ndindex(*out.shape)):
            wanted[i, j] = Oracle(fmt, accumulator, mode, number)(a[i].tolist(), b[:, j].tolist())
        assert same(out, wanted).all(), (str(accumulator), out[~same(out, wanted)], wanted[~same(out, wanted)])


def of(text: str, fmt: Format) -> Accumulator:
    parsed = get_accumulator(f"fp16{text}")
    return Accumulator(parsed.kind, fmt, parsed.order, parsed.products)


# Each mode, tree and set of flags is a kernel to compile, a second or two: the quick part meets every mode and every tree.
ALL_TREES = [(mode, text) for mode in Rounding for text in TREES]
SOME_TREES = [(mode, text) for mode, text in ALL_TREES if mode is Rounding.NEAREST_EVEN or text == ""]
ALL_KINDS = [(mode, kind) for mode in Rounding for kind in ("kahan", "neumaier", "exact")]
SOME_KINDS = [(mode, kind) for mode, kind in ALL_KINDS if mode is Rounding.NEAREST_EVEN or kind == "exact"]


@pytest.mark.parametrize(("mode", "text"), SOME_TREES, ids=str)
def test_trees_equal_exact_rationals(mode: Rounding, text: str) -> None:
    for seed, fmt in enumerate(FORMATS[:4]):
        check(fmt, of(text, fmt), mode, seed)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("mode", "text"), ALL_TREES, ids=str)
def test_all_trees_equal_exact_rationals(mode: Rounding, text: str) -> None:
    for seed, fmt in enumerate(FORMATS):
        check(fmt, of(text, fmt), mode, seed)


@pytest.mark.parametrize(("mode", "kind"), SOME_KINDS, ids=str)
def test_other_accumulators_equal_exact_rationals(mode: Rounding, kind: str) -> None:
    for seed, fmt in enumerate(FORMATS[:2]):
        accumulator = get_accumulator("exact") if kind == "exact" else Accumulator(kind, fmt)  # type: ignore[arg-type]
        check(fmt, accumulator, mode, seed)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("mode", "kind"), ALL_KINDS, ids=str)
def test_all_other_accumulators_equal_exact_rationals(mode: Rounding, kind: str) -> None:
    for seed, fmt in enumerate(FORMATS[:6]):
        accumulator = get_accumulator("exact") if kind == "exact" else Accumulator(kind, fmt)  # type: ignore[arg-type]
        check(fmt, accumulator, mode, seed)


SECOND = ["fp32:split(2)->bf16", "fp16:lanes(3):fma->e5m2"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", [mode for mode in Rounding if mode is not Rounding.STOCHASTIC], ids=str)
@pytest.mark.parametrize("text", ["fp16:blocked(3)->fp32", "e5m2:lanes(2):fma->bf16", *SECOND, "fp32", "bf16", "e5m10:fma"])
def test_accumulators_wider_and_narrower_than_the_operands(mode: Rounding, text: str) -> None:
    for name in ("fp16", "e4m3fn", "bf16"):
        check(get_format(name), get_accumulator(text), mode)


@pytest.mark.parametrize("text", ["fp16:blocked(3)->fp32", *SECOND, "fp32", "e5m10:fma"])
def test_wider_and_narrower_accumulators_to_nearest_even(text: str) -> None:
    for name in ("fp16", "e4m3fn", "bf16"):
        check(get_format(name), get_accumulator(text), Rounding.NEAREST_EVEN)


@settings(max_examples=60, deadline=None)
@given(
    tree=nested_trees(widest=2),
    name=st.sampled_from(["fp16", "bf16", "e5m2"]),
    mode=st.sampled_from([Rounding.NEAREST_EVEN, Rounding.STOCHASTIC]),
    seed=st.integers(0, 10**6),
)
def test_random_trees_equal_exact_rationals(tree: Any, name: str, mode: Rounding, seed: int) -> None:
    fmt, made, generator = get_format(name), Tree.from_nested(tree), np.random.default_rng(seed)
    shapes = ((2, made.leaves), (made.leaves, 3))
    a, b = (generator.standard_normal(shape) * np.exp2(generator.integers(-9, 9, shape)) for shape in shapes)
    for x in (a, b):
        round_into(x, x, fmt, Rounding.TOWARD_ZERO)
    accumulator, out = Accumulator(format=fmt, order=made), np.empty((2, 3))  # type: ignore[arg-type]
    product_into(Sum.of(fmt, accumulator, mode), a, b, out, draws_of(mode, out))
    for number, (i, j) in enumerate(np.ndindex(2, 3)):
        wanted = np.array(Oracle(fmt, accumulator, mode, number)(a[i].tolist(), b[:, j].tolist()))
        assert same(out[i, j], wanted)


@settings(max_examples=60, deadline=None)
@given(
    tree=nested_trees(),
    name=st.sampled_from(["fp16", "bf16", "e4m3fn", "tf32"]),
    mode=st.sampled_from(list(Rounding)),
    products=st.sampled_from(["rounded", "exact"]),
    seed=st.integers(0, 10**6),
)
def test_trees_with_nodes_of_many_terms_equal_exact_rationals(
    tree: Any, name: str, mode: Rounding, products: str, seed: int
) -> None:
    fmt, made = get_format(name), Tree.from_nested(tree)
    accumulator = Accumulator(format=fmt, order=made, products=products)  # type: ignore[arg-type]
    generator = np.random.default_rng(seed)
    a, b = (generator.standard_normal(shape) for shape in ((2, made.leaves), (made.leaves, 3)))
    scale, holes = generator.choice([1.0, fmt.max_finite**0.5, 2.0 ** (fmt.emin / 2)]), generator.random(2) < 0.3
    for x, hole in zip((a, b), holes, strict=True):
        x *= scale * np.exp2(generator.integers(-9, 9, x.shape))
        if hole:
            x[generator.random(x.shape) < 0.3] = generator.choice([-0.0, INF if fmt.has_infinity else 1.0, NAN])
        round_into(x, x, fmt, Rounding.TOWARD_ZERO)
    out = np.empty((2, 3))
    product_into(Sum.of(fmt, accumulator, mode), a, b, out, draws_of(mode, out))
    for number, (i, j) in enumerate(np.ndindex(2, 3)):
        wanted = np.array(Oracle(fmt, accumulator, mode, number)(a[i].tolist(), b[:, j].tolist()))
        assert same(out[i, j], wanted), (out[i, j], wanted)


def half_operands(size: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    a, b = ((generator.standard_normal((size, size)) * scale).astype(np.float16) for _ in range(2))
    return a, b


def loop_of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = np.zeros((a.shape[0], b.shape[1]), dtype=a.dtype)
    with np.errstate(all="ignore"):
        for k in range(a.shape[1]):
            total = total + a[:, k : k + 1] * b[k : k + 1]
    return total


@pytest.mark.parametrize("scale", [1.0, 2.0**-9, 80.0], ids=["ordinary", "underflow", "overflow"])
def test_fp16_chain_equals_the_numpy_float16_loop(scale: float) -> None:
    a, b = half_operands(96, scale)
    out = fpsim.matmul(a.astype(np.float32), b.astype(np.float32), fmt="fp16", accumulate="fp16")
    assert same(out, loop_of(a, b).astype(np.float32)).all()


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("before", [-127.9375 * 255.875, -(2.0**15), -32784.0, -65504.0])
def test_a_leaf_that_overflows_between_sums_that_do_not_is_seen(rows: int, before: float) -> None:
    """Sums alone are watched in a chain: a leaf of 65536 takes any sum below 2^15 to one above. One column of many has it."""
    a, b = np.full((rows, 3), 256.0, np.float16), np.full((3, 300), 2.0**-14, np.float16)
    b[:, 77] = before / 256, 256.0, 1.0
    wanted = loop_of(a, b).astype(np.float32)
    assert np.isinf(wanted[:, 77]).all() and np.isinf(wanted).sum() == rows
    left, right = a.astype(np.float32), b.astype(np.float32)
    for operands, answer in (((left, right), wanted), ((right.T.copy(), left.T.copy()), wanted.T)):
        assert same(fpsim.matmul(*operands, fmt="fp16", accumulate="fp16"), answer).all()


@pytest.mark.parametrize(
    ("accumulate", "mode"),
    [("fp16", "nearest-even"), ("fp16:fma", "odd"), ("fp32", "down"), ("fp16:blocked(64)->fp32", "nearest-even")],
)
@pytest.mark.parametrize("scale", [1.0, 2.0**-10, 90.0], ids=["ordinary", "underflow", "overflow"])
def test_one_row_or_column_equals_that_of_many(accumulate: str, mode: str, scale: float) -> None:
    generator = np.random.default_rng(6)
    for leaves, columns in ((257, 300), (1000, 129), (41, 2048), (1100, 220)):
        shapes = ((3, leaves), (leaves, columns))
        a, b = (np.float32(np.float16(generator.standard_normal(shape) * scale)) for shape in shapes)
        how = {"fmt": "fp16", "accumulate": accumulate, "rounding": mode}
        wanted = fpsim.matmul(a, b, **how)[:1]
        by_columns = np.ascontiguousarray(b.T)
        wide = np.concatenate([b, b], axis=1)[:, :columns]
        for right in (b, by_columns.T, wide):
            assert same(fpsim.matmul(a[:1], right, **how), wanted).all()
        assert same(fpsim.matmul(by_columns, a[:1].T, **how).T, wanted).all()


ORDERS = ("fp16", "fp16:pairwise", "fp16:fma", "fp16:kahan", "fp16:blocked(8)->fp32", "e4m3fn", "tf32")


@pytest.mark.parametrize(
    ("accumulate", "mode"),
    often(
        itertools.product(ORDERS, ("nearest-even", "odd", "stochastic")),
        [*((order, "nearest-even") for order in ORDERS), ("fp16", "odd"), ("fp16", "stochastic")],
    ),
)
@pytest.mark.parametrize("shape", [(9, 40, 70), (2, 40, 70), (70, 40, 9), (1, 300, 200)])
def test_nan_takes_its_row_or_column_and_nothing_else(accumulate: str, mode: str, shape: tuple[int, int, int]) -> None:
    rows, leaves, columns = shape
    generator = np.random.default_rng(rows)
    a, b = (np.float32(np.float16(generator.standard_normal(x))) for x in ((rows, leaves), (leaves, columns)))
    a[-1, 3], b[5, 4] = np.inf, -np.inf
    how = {"fmt": "fp16", "accumulate": accumulate, "rounding": mode, "seed": 3 if mode == "stochastic" else None}
    for in_rows, in_columns in (([0], []), ([], [2, 6]), ([0], [columns - 1]), (range(rows), []), ([], range(columns))):
        left, right, wanted = a.copy(), b.copy(), fpsim.matmul(a, b, **how)
        for i in in_rows:
            left[i, (7 * i) % leaves] = wanted[i] = np.nan
        for j in in_columns:
            right[(5 * j) % leaves, j] = wanted[:, j] = np.nan
        assert same(fpsim.matmul(left, right, **how), wanted).all()


@pytest.mark.parametrize(("leaves", "gap"), [(80, 0), (89, 7), (91, 0), (17, 15), (16, 0)])
def test_columns_may_begin_anywhere_in_a_line_of_the_cache(leaves: int, gap: int) -> None:
    generator, columns = np.random.default_rng(8), 1100
    a = np.float32(np.float16(generator.standard_normal((3, leaves))))
    for offset in range(16):
        room = np.float32(np.float16(generator.standard_normal(offset + columns * (leaves + gap))))
        by_columns = room[offset:].reshape(columns, leaves + gap)[:, :leaves]
        wanted = fpsim.matmul(a, np.ascontiguousarray(by_columns.T), fmt="fp16", accumulate="fp16")[:1]
        assert same(fpsim.matmul(a[:1], by_columns.T, fmt="fp16", accumulate="fp16"), wanted).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_chain_equals_the_torch_rank_one_loop_at_512(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(512, 512, generator=generator).to(getattr(torch, dtype)) for _ in range(2))
    total = torch.zeros(512, 512, dtype=a.dtype)
    for k in range(512):
        total = total + a[:, k : k + 1] * b[k : k + 1]
    got = fpsim.matmul(a.float(), b.float(), fmt=a.dtype, accumulate=get_format(a.dtype))
    assert torch.equal(got, total.float())


@pytest.mark.parametrize(
    ("accumulate", "rounding"),
    [("fp16", "nearest-even"), ("fp16", "stochastic"), ("bf16:fma", "down"), ("exact", "odd"), ("fp16:kahan", "stochastic")],
)
def test_the_number_of_threads_changes_nothing(accumulate: str, rounding: str) -> None:
    a, b = (x[:101, :101].astype(np.float32) for x in half_operands(128))
    a, b = (fpsim.round(x, "bf16") if accumulate.startswith("bf16") else x for x in (a, b))
    fmt = "bf16" if accumulate.startswith("bf16") else "fp16"
    seed = 3 if rounding == "stochastic" else None
    found = []
    try:
        for count in (1, 2, 4):
            threads.set_num_threads(count)
            found.append(fpsim.matmul(a, b, fmt=fmt, accumulate=accumulate, rounding=rounding, seed=seed))
    finally:
        threads.set_num_threads(None)
    assert same(found[0], found[1]).all() and same(found[0], found[2]).all()


def test_fma_rounds_once_where_float32_would_round_twice() -> None:
    """numerics.md, trap 6: the product, then 1.0 * c, as a chain of two steps."""
    a, b = np.array([[-10.5625, 1.3017578125]], np.float32), np.array([[1.0], [-0.63916015625]], np.float32)
    assert fpsim.matmul(a, b, fmt="fp16", accumulate="fp16:fma")[0, 0] == float(
        np.float16(float(Fraction(-10.5625) + Fraction(1.3017578125) * Fraction(-0.63916015625)))
    )


FMA_MODES = often(sums_oracle.DETERMINISTIC, (Rounding.NEAREST_EVEN, Rounding.ODD))


@pytest.mark.parametrize("mode", FMA_MODES, ids=str)
@pytest.mark.parametrize("name", ["fp16", "bf16", "e4m3", "fp32"])
def test_fma_on_triples_built_to_round_wrongly_twice(name: str, mode: Rounding) -> None:
    """Sums next to midpoints: c is a value and a half ulp's worth of product away from the next, give or take little."""
    fmt, generator = get_format(name), np.random.default_rng(7)
    count, p = 300, fmt.precision
    c = np.exp2(generator.integers(-2, 3, count)) * (1 + generator.integers(0, 2 ** (p - 1), count) * 2.0 ** (1 - p))
    x = 1 + generator.integers(0, 2 ** (p - 1), count) * 2.0 ** (1 - p)
    power = np.exp2(generator.integers(-p - 3, 2 - p, count)) * generator.choice([-1.0, 1.0], count)
    y = power * (1 + generator.integers(-2, 3, count) * 2.0 ** (1 - p))
    round_into(y, y, fmt, Rounding.TOWARD_ZERO)
    a, b = np.stack([c, x], axis=1), np.stack([np.ones(count), y])
    out = np.empty((count, count))
    accumulator = of(":fma", fmt)
    product_into(Sum.of(fmt, accumulator, mode), a, b, out)
    wanted = [Oracle(fmt, accumulator, mode, 0)(a[i].tolist(), b[:, i].tolist()) for i in range(count)]
    assert same(np.diagonal(out), np.array(wanted)).all()


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32"])
def test_exact_sums_survive_massive_cancellation(name: str) -> None:
    fmt, generator = get_format(name), np.random.default_rng(11)
    big = fpsim.round(generator.standard_normal(40) * 2.0 ** (fmt.emax // 2 - 2), fmt)
    small = fpsim.round(generator.standard_normal(3) * 2.0 ** (fmt.emin // 2), fmt)
    x, y = np.concatenate([big, -big, small]), np.concatenate([big, big, small])
    order = generator.permutation(x.size)
    x, y = x[order], y[order]
    total = sum((Fraction(float(u)) * Fraction(float(v)) for u, v in zip(x, y, strict=True)), Fraction(0))
    assert fpsim.dot(x, y, fmt=fmt, accumulate="exact") == rounded(total, False, fmt, Rounding.NEAREST_EVEN) != 0


@pytest.mark.parametrize("accumulate", ["fp64", "native", "fp64:kahan", "fp32:blocked(2)->fp64"])
def test_sums_in_float64_take_addends_and_blocks(accumulate: str) -> None:
    a, b = np.full((2, 5), 3.0), np.full((5, 2), 7.0)
    found = fpsim.matmul(a, b, fmt="fp32", accumulate=accumulate, addend=np.full((2, 2), 0.5))
    assert same(found, np.full((2, 2), 105.5)).all()


@pytest.mark.parametrize("name", ["fp16", "bf16", "e5m2", "e4m3fn", "e4m3fnuz"])
def test_sums_of_any_two_values_in_float32_are_rounded_once(name: str) -> None:
    dtype = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}.get(name) or getattr(ml_dtypes, f"float8_{name}")
    bits = np.dtype(dtype).itemsize * 8
    with np.errstate(all="ignore"):
        values = np.arange(2**bits, dtype=f"u{bits // 8}").view(dtype)
        generator = np.random.default_rng(1)
        others = values if bits == 8 else values[generator.integers(0, 2**16, 40)]
        wanted = (values[:, None] + others).astype(np.float32)
        x, y = (np.repeat(values.astype(np.float32)[:, None], others.size, axis=1), others.astype(np.float32))
    got = add_rounded(x, np.broadcast_to(y, x.shape), get_format(name), Rounding.NEAREST_EVEN, Draws(), 0)
    assert same(got, wanted).all()
    into = add_rounded(x, np.broadcast_to(y, x.shape), get_format(name), Rounding.NEAREST_EVEN, Draws(), 0, out=x)
    assert into is x and same(into, wanted).all()


def test_addend_and_bias_join_after_the_sum() -> None:
    fmt = get_format("fp16")
    a, b = (x.astype(np.float32) for x in half_operands(8))
    extra = fpsim.round(np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32) * 8, "fp16")
    plain = fpsim.matmul(a, b, fmt="fp16", accumulate="fp16")
    assert same(fpsim.matmul(a, b, fmt="fp16", accumulate="fp16", addend=extra), fpsim.round(plain + extra, "fp16")).all()
    out = np.empty((8, 8), np.float32)
    product_into(Sum.of(fmt, get_accumulator("fp16"), Rounding.NEAREST_EVEN), a, b, out, addends=(extra[0],))
    assert same(out, fpsim.round(plain + extra[0], "fp16")).all()
    once = fpsim.matmul(a, b, fmt="fp16", accumulate="exact", addend=extra)
    sums = a.astype(np.float64) @ b.astype(np.float64) + extra  # exact: 8 products of 22 bits in a narrow range
    assert same(once, fpsim.round(sums, "fp16").astype(np.float32)).all()


def test_infinities_and_nan_anywhere_are_found() -> None:
    """Also in the columns that two panels share when a row vector reads its operand in place."""
    a, b = (x.astype(np.float32) for x in half_operands(300, 0.1))
    for row, column, value in ((0, 299, NAN), (7, 3, INF), (299, 299, -INF), (0, 0, NAN)):
        spoiled = b.copy()
        spoiled[row, column] = value
        got = fpsim.matmul(a[:1], spoiled, fmt="fp16", accumulate="fp16")
        wanted = loop_of(a[:1].astype(np.float16), spoiled.astype(np.float16)).astype(np.float32)
        assert same(got, wanted).all()


def test_strides_orientations_batches_and_small_shapes() -> None:
    a, b = (x.astype(np.float32) for x in half_operands(40))
    for left, right in (
        (a[::-2, ::3], b[::-3, ::-2][:14]),
        (a.T, b.T),
        (a[:, :5], b[:5, :1]),
        (a[:1], b),
        (a[:1, :3], np.asfortranarray(b[:3])),
        (a[:, ::-1], b[::-1, :33]),
    ):
        got = fpsim.matmul(left, right, fmt="fp16", accumulate="fp16")
        assert same(got, loop_of(left.astype(np.float16), right.astype(np.float16)).astype(np.float32)).all()
    batch = np.stack([a, a.T])[:, None]
    got = fpsim.matmul(batch, np.stack([b, b * 0.5, -b]), fmt="fp16", accumulate="fp16")
    assert got.shape == (2, 3, 40, 40)
    assert same(got[1, 2], fpsim.matmul(a.T, -b, fmt="fp16", accumulate="fp16")).all()
    assert fpsim.matmul(a[0], b, fmt="fp16").shape == (40,) and fpsim.matmul(a, b[:, 0], fmt="fp16").shape == (40,)
    assert fpsim.matmul(a[:0], b, fmt="fp16").shape == (0, 40)


@pytest.mark.parametrize("rounding", ["nearest-even", "stochastic"])
def test_tall_products_that_are_packed_in_parts(rounding: str) -> None:
    generator = np.random.default_rng(2)
    a = fpsim.round(generator.standard_normal((3000, 400)).astype(np.float32), "fp16")
    b, seed = a[:1].T, 3 if rounding == "stochastic" else None
    arguments: dict[str, Any] = {"fmt": "fp16", "accumulate": "fp16", "rounding": rounding, "seed": seed}
    whole = fpsim.matmul(a, b, **arguments)
    assert same(fpsim.matmul(a[:700], b, **arguments), whole[:700]).all()
    long = np.ones((130, 9000), np.float32)
    tall = fpsim.matmul(long, long[:1].T, **arguments)
    assert same(tall[:2], fpsim.matmul(long[:2], long[:1].T, **arguments)).all()
    if rounding == "nearest-even":
        assert same(whole, loop_of(a.astype(np.float16), b.astype(np.float16)).astype(np.float32)).all()


@pytest.mark.parametrize("accumulate", ["fp16", "fp16:pairwise", "fp16:kahan", "exact", "fp32", "fp16:blocked(4)->fp32"])
def test_no_terms_give_plus_zero(accumulate: str) -> None:
    out = fpsim.matmul(np.zeros((2, 0), np.float32), np.zeros((0, 3), np.float32), fmt="fp16", accumulate=accumulate)
    assert same(out, np.zeros((2, 3), np.float32)).all()
    for mode in ("down", "odd") if accumulate == "exact" else ():
        none = (np.zeros((2, 0), np.float32), np.zeros((0, 3), np.float32))
        empty = fpsim.matmul(*none, fmt="fp16", accumulate="exact", rounding=mode)
        assert same(empty, np.zeros((2, 3), np.float32)).all()


def test_rows_draw_by_their_number_in_the_whole_result() -> None:
    a, b = (x.astype(np.float32) for x in half_operands(24))
    arguments: dict[str, Any] = {"fmt": "fp16", "accumulate": "fp16", "rounding": "stochastic", "seed": 2}
    whole = fpsim.matmul(a, b, **arguments)
    assert same(fpsim.matmul(a[:5], b, **arguments), whole[:5]).all()
    assert not same(fpsim.matmul(a, b, **(arguments | {"seed": 3})), whole).all()
    stacked = fpsim.matmul(np.stack([a[:12], a[12:]]), b, **arguments)
    assert same(stacked.reshape(24, 24), whole).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"b": np.zeros((3, 2), np.float32)}, "a and b do not fit"),
        ({"b": np.zeros((5, 4, 2), np.float32), "a": np.zeros((3, 2, 4), np.float32)}, "do not broadcast"),
        ({"a": np.float32(1)}, "a must have at least one dimension"),
        ({"addend": np.zeros((7, 7), np.float32)}, "addend"),
        ({"a": np.full((2, 4), 0.1, np.float32)}, "is no value of fp16"),
        ({"accumulate": Accumulator(order=Tree.from_nested(((0, 1), 2)))}, "given tree has 3 leaves"),  # type: ignore[arg-type]
        ({"accumulate": "e8m30"}, "accumulate: e8m30 has rounding and encoding only"),
        ({"rounding": "stochastic"}, "seed"),
        ({"accumulate": "native", "rounding": "up"}, "native"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"a": np.zeros((2, 4), np.float32), "b": np.zeros((4, 2), np.float32), "fmt": "fp16"}
    usual |= arguments
    with pytest.raises(ValueError, match=message):
        fpsim.matmul(usual.pop("a"), usual.pop("b"), **usual)


def test_dot_takes_vectors() -> None:
    x = np.arange(4, dtype=np.float32)
    assert fpsim.dot(x, x, fmt="fp16") == 14
    with pytest.raises(ValueError, match="one length"):
        fpsim.dot(x, x[:3], fmt="fp16")
    with pytest.raises(ValueError, match="a must be a vector"):
        fpsim.dot(x[None], x, fmt="fp16")


def test_16_bit_formats_run_in_float32_and_wide_ones_in_float64() -> None:
    even = Rounding.NEAREST_EVEN
    elements = {name: scheme(f := get_format(name), f, even, False, True).element for name in ("fp16", "bf16", "tf32", "e8m9")}
    assert elements == {"fp16": "f4", "bf16": "f4", "tf32": "f8", "e8m9": "f8"}


@pytest.mark.parametrize("size", [1.0, 90.0])
@pytest.mark.parametrize("order", ["", ":lanes(2)"])
def test_infinities_give_what_numpys_float16_gives(size: float, order: str) -> None:
    """Infinite leaves decide a sum, unless finite ones overflow before: with factors of about 90 many do."""
    generator = np.random.default_rng(8)
    a, b = (fpsim.round(generator.standard_normal(shape) * size, "fp16") for shape in ((70, 40), (40, 90)))
    a[generator.random(a.shape) < 0.01] = np.inf
    a[3, 5], a[4, 6] = np.nan, -np.inf
    b[generator.random(b.shape) < 0.005] = -np.inf
    b[7, ::9] = 0
    parts = [range(first, 40, 2) for first in range(2)] if order else [range(40)]
    sums = []
    with np.errstate(all="ignore"):
        for part in parts:
            total = np.zeros((70, 90), np.float16)
            for k in part:
                total = total + a[:, k : k + 1].astype(np.float16) * b[k].astype(np.float16)
            sums.append(total)
        wanted = sums[0] if len(sums) == 1 else sums[0] + sums[1]
    found = fpsim.matmul(a, b, fmt="fp16", accumulate=f"fp16{order}")
    assert np.isposinf(found).any() and np.isneginf(found).any() and np.isnan(found).any() and np.isfinite(found).any()
    assert np.array_equal(found, wanted.astype(np.float64), equal_nan=True)
