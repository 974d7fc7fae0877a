"""Counters of long float32 sums against loops of NumPy's float32: they look at few additions, and must miss none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import fpsim
from fpsim.accumulation import get_accumulator
from fpsim.backend import threads
from fpsim.numbers.formats import get_format
from fpsim.numbers.rounding import Rounding
from fpsim.sums.axes import mean_axes, sum_axes
from fpsim.sums.observers import counting, counting_tiles
from fpsim.sums.observers.counters import SwampedAdditions
from fpsim.sums.observers.counting_tiles import SeldomSwampedJob
from fpsim.sums.task import Draws, Sum


@pytest.fixture(autouse=True, scope="module")
def small_ones_too():
    """Small products are counted in another way, which is quicker to begin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_LARGE", 0)
        yield


def numpy_counts(a: np.ndarray, b: np.ndarray, parts: list[range] | None = None) -> fpsim.Counters:
    """One chain from +0, or one for each part and a chain of their sums: IEEE's in float32, products rounded before."""
    counters, total = fpsim.Counters(), np.zeros((a.shape[0], b.shape[1]), np.float32)
    for part in parts or [range(a.shape[1])]:
        block = np.zeros((a.shape[0], b.shape[1]), np.float32)
        for k in part:
            leaf = a[:, k : k + 1] * b[k]
            new = block + leaf
            given_factors = (a[:, k : k + 1] != 0) & (b[k] != 0)
            counters.underflows += int(np.count_nonzero(given_factors & (leaf == 0)))
            counters.swamped += int(np.count_nonzero((leaf != 0) & (new == block)))
            counters.largest = max(counters.largest, float(np.abs(new).max()))
            counters.additions += new.size
            block = new
        if parts is None:
            break
        new = total + block
        counters.swamped += int(np.count_nonzero((total != 0) & (block != 0) & ((new == total) | (new == block))))
        counters.largest = max(counters.largest, float(np.abs(new).max()))
        counters.additions += new.size
        total = new
    return counters


@st.composite
def products(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Factors of one size or of very different ones, far from overflow, some of them zero, some all of one sign."""
    rows, leaves, columns = draw(st.integers(1, 40)), draw(st.integers(1, 300)), draw(st.integers(1, 70))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread, scale, zeros = draw(st.sampled_from([0, 2, 8])), draw(st.sampled_from([0, -30, -66, -70])), draw(st.booleans())
    pair = []
    for shape in ((rows, leaves), (leaves, columns)):
        x = generator.standard_normal(shape) * 2.0 ** (generator.normal(scale=spread, size=shape).clip(-40, 40) + scale)
        if zeros:
            x[generator.random(shape) < 0.4] = 0
        if draw(st.booleans()):
            x = np.abs(x)
        pair.append(x.astype(np.float32))
    return pair[0], pair[1]


def counted(
    pair: tuple[np.ndarray, np.ndarray], accumulate: str, few: float, kind: type[fpsim.Counters] = fpsim.Counters
) -> fpsim.Counters:
    """A product's counters, where blocks are looked at unless more than this share of them has to be."""
    counters = kind()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting_tiles, "_FEW", few)
        fpsim.matmul(*pair, fmt="fp32", accumulate=accumulate, counters=counters)
    return counters


def blocks(leaves: int, size: int) -> list[range]:
    return [range(start, min(start + size, leaves)) for start in range(0, leaves, size)]


FEW = st.sampled_from([0.5, 1.0])


@settings(max_examples=60, deadline=None)
@given(products(), st.sampled_from([None, 7, 16, 20]), FEW)
def test_counts_are_those_of_numpy(pair: tuple[np.ndarray, np.ndarray], size: int | None, few: float) -> None:
    accumulate, wanted = f"fp32:blocked({size})" if size else "fp32", blocks(pair[0].shape[1], size) if size else None
    whole, alone = (counted(pair, accumulate, few, kind) for kind in (fpsim.Counters, SwampedAdditions))
    assert whole == numpy_counts(*pair, wanted)
    assert (alone.additions, alone.swamped) == (whole.additions, whole.swamped)


@settings(max_examples=20, deadline=None)
@given(products(), FEW)
def test_counts_of_strided_sums_are_those_of_numpy(pair: tuple[np.ndarray, np.ndarray], few: float) -> None:
    leaves, counters = pair[0].shape[1], counted(pair, "fp32:lanes(2)", few)
    wanted = numpy_counts(*pair, [range(first, leaves, 2) for first in range(min(2, leaves))])
    assert (counters.swamped, counters.underflows, counters.largest) == (wanted.swamped, wanted.underflows, wanted.largest)
    assert counted(pair, "fp32:lanes(2)", few, SwampedAdditions).swamped == wanted.swamped


@settings(max_examples=20, deadline=None)
@given(products())
def test_counts_of_exact_products_are_those_of_numpy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Products of bf16 numbers are exact in float32, so that a fused sum is NumPy's, unless they are too small."""
    a, b = (fpsim.round(x, "bf16") for x in pair)
    counters, wanted = fpsim.Counters(), numpy_counts(a, b)
    products_of_least = [np.abs(x[x != 0]).min(initial=1.0) for x in (a, b)]
    if float(products_of_least[0]) * float(products_of_least[1]) < 2.0**-126:
        return
    fpsim.matmul(a, b, fmt="bf16", accumulate="fp32", counters=counters)
    assert (counters.swamped, counters.largest) == (wanted.swamped, wanted.largest)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("accumulate", ["fp32", "fp32:blocked(20)", "fp32:lanes(2)"])
def test_swamped_additions_of_pairs_alone_are_those_of_numpy(accumulate: str, turned: bool) -> None:
    """Dense factors, some that are zero, and some that are far smaller: seldom and often swamped ones in one call."""
    generator = np.random.default_rng(3)
    shape, leaves = (5, 40, 33), 40
    a = generator.standard_normal((*shape[:2], leaves)) * 2.0 ** generator.choice([0, -20], (5, 1, leaves), p=[0.8, 0.2])
    b = np.where(generator.random((5, leaves, shape[2])) < 0.3, 0, generator.standard_normal((5, leaves, shape[2])))
    a, b = a.astype(np.float32), b.astype(np.float32)
    parts = {"fp32:blocked(20)": blocks(leaves, 20), "fp32:lanes(2)": [range(first, leaves, 2) for first in range(2)]}
    wanted = sum(numpy_counts(*pair, parts.get(accumulate)).swamped for pair in zip(a, b, strict=True))
    task = Sum.of(get_format("fp32"), get_accumulator(accumulate), Rounding.NEAREST_EVEN)
    left, right = (b.mT, a.mT) if turned else (a, b)
    products = (alone := SwampedAdditions()).products(task, left, right)
    assert alone.swamped == wanted > 1000
    assert products is not None
    for product, x, y in zip(products, left, right, strict=True):
        assert np.array_equal(product, fpsim.matmul(x, y, fmt="fp32", accumulate=accumulate))


def test_a_large_product_takes_this_way_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    a, b = (generator.standard_normal((300, 300)).astype(np.float32) for _ in range(2))
    jobs, run = [], SeldomSwampedJob.run
    monkeypatch.setattr(SeldomSwampedJob, "run", lambda self, *given: jobs.append(self) or run(self, *given))
    wanted = numpy_counts(a, b)
    assert wanted.swamped > 0
    try:
        for count in (1, 2, 4):
            threads.set_num_threads(count)
            counters = fpsim.Counters()
            fpsim.matmul(a, b, fmt="fp32", accumulate="fp32", counters=counters)
            assert counters == wanted
    finally:
        threads.set_num_threads(None)
    assert len(jobs) == 3


@pytest.mark.parametrize("special", [None, np.inf, np.nan, 2.0**60])
def test_swamped_additions_alone_are_those_of_numpy_whatever_the_threads(special: float | None) -> None:
    """Products of one pair and of several, whose rows threads share; of numbers that are large or not finite too."""
    generator = np.random.default_rng(7)
    a, b = (generator.standard_normal(shape).astype(np.float32) for shape in ((3, 130, 150), (3, 150, 70)))
    a[:, :, 40:90] *= np.float32(2.0**-20)
    if special is not None:
        a[1, 7, 9] = special
    with np.errstate(invalid="ignore"):
        wanted = [numpy_counts(*pair) for pair in zip(a, b, strict=True)]
    assert all(counters.swamped > 1000 for counters in wanted)
    task = Sum.of(get_format("fp32"), get_accumulator("fp32"), Rounding.NEAREST_EVEN)
    try:
        for count in (1, 4, 7):
            threads.set_num_threads(count)
            alone, together = [SwampedAdditions() for _ in a], SwampedAdditions()
            results = [one.product(task, *pair, Draws()) for one, *pair in zip(alone, a, b, strict=True)]
            assert [one.swamped for one in alone] == [counters.swamped for counters in wanted]
            products = together.products(task, a, b)
            assert (products is None) == (special is not None and not np.isfinite(special))
            if products is not None:
                assert np.array_equal(products, results)
                assert together.swamped == sum(counters.swamped for counters in wanted)
    finally:
        threads.set_num_threads(None)


@pytest.mark.parametrize("kind", [fpsim.Counters, SwampedAdditions])
def test_a_part_of_rows_and_columns_at_a_time_counts_as_all(
    kind: type[fpsim.Counters], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(6)
    a, b = generator.standard_normal((70, 90)).astype(np.float32), generator.standard_normal((90, 200)).astype(np.float32)
    monkeypatch.setattr(counting_tiles, "_COUNTED", 1)
    task = Sum.of(get_format("fp32"), get_accumulator("fp32"), Rounding.NEAREST_EVEN)
    product = (counters := kind()).product(task, a, b, Draws())
    assert counters.swamped == numpy_counts(a, b).swamped > 0
    assert np.array_equal(product, fpsim.matmul(a, b, fmt="fp32", accumulate="fp32"))


def test_an_overflow_is_seen_and_counted() -> None:
    """39 * 2^122 + 2^126 is 55 * 2^122, and 39 * 2^122 + 2^127 more than 2^128."""
    a = np.ones((5, 40), np.float32)
    a[3, 39] = 2.0
    b = np.full((40, 33), 2.0**122, np.float32)
    b[39] = 2.0**126
    counters = fpsim.Counters()
    fpsim.matmul(a, b, fmt="fp32", accumulate="fp32", counters=counters)
    assert counters == fpsim.Counters(additions=5 * 40 * 33, overflows=33, largest=np.inf)


def scattered(dtype: type, seed: int) -> np.ndarray:
    """(terms, columns): more of these than a kernel takes at once; some zeros, some terms that a sum swamps."""
    generator = np.random.default_rng(seed)
    scale = 2.0 ** generator.choice([0, -12 if dtype is np.float16 else -26], (60, 1), p=[0.7, 0.3])
    x = generator.standard_normal((60, 1040)) * scale * (generator.random((60, 1040)) < 0.8)
    return np.asarray(x.astype(dtype), np.float32)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(("fmt", "accumulate", "dtype"), [("fp32", "fp32", np.float32), ("fp16", "fp16", np.float16)])
def test_swamped_additions_down_columns_are_those_of_numpy(fmt: str, accumulate: str, dtype: type, mean: bool) -> None:
    """Of an array's first axis, and of one between two others; a column that overflows is counted as products are."""
    x = scattered(dtype, 1)
    task = Sum.of(get_format(fmt), get_accumulator(accumulate), Rounding.NEAREST_EVEN)
    total, lost = np.zeros(x.shape[1], dtype), 0
    for line in x.astype(dtype):
        before, total = total, total + line
        lost += np.count_nonzero((line != 0) & (total == before))
    reduce = mean_axes if mean else sum_axes
    for terms, axes in ((x, (0,)), (np.stack([x, -x]), (1,))):
        alone = SwampedAdditions()
        sums = reduce(task, terms, axes, observer=alone)
        assert (alone.additions, alone.swamped) == (terms.size, lost * terms.size // x.size) and lost > 1000
        assert np.array_equal(sums, reduce(task, terms, axes))
        if not mean:
            assert np.array_equal(sums.reshape(-1, x.shape[1])[0], total)
    x[:2, 3] = get_format(fmt).max_finite
    whole, alone = fpsim.Counters(), SwampedAdditions()
    for counters in (whole, alone):
        assert np.isinf(reduce(task, x, (0,), observer=counters)[3])
    assert (alone.additions, alone.swamped) == (whole.additions, whole.swamped)
