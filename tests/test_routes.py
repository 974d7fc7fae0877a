"""Every way to compute a sum of products gives the same bits, whatever it is that makes it quick."""

import itertools

import numpy as np
import pytest

from fpsim.accumulation import Accumulator, get_accumulator, given
from fpsim.accumulation.kinds import PARTS, TREE
from fpsim.numbers.formats import get_format
from fpsim.numbers.rounding import Rounding, round_into, seed_key
from fpsim.sums.observers.counters import Counters
from fpsim.sums.observers.counting import _products, count_product, count_products
from fpsim.sums.observers.error_sums import Kept, error_sums
from fpsim.sums.plan import plan
from fpsim.sums.routes import ROUTES
from fpsim.sums.task import Draws, Sum
from tests.frequency import often

WIDE_NODES = Accumulator(format="bf16", order=given(((0, 1, 2), (3, (4, 5, 6, 7)), 8)))
CASES = {
    "fp16": "fp16", "fp16 pairwise": "fp16:pairwise", "fp16 lanes": "fp16:lanes(4)", "fp16 fma": "fp16:fma",
    "fp16 exact products": "fp16:pairwise:exact-products", "bf16": "bf16", "bf16 fma": "bf16:fma", "fp32": "fp32",
    "fp32 fma": "fp32:fma", "tf32": "tf32", "fp16 kahan": "fp16:kahan", "fp16 neumaier": "fp16:neumaier",
    "fp16 parts": "fp16:blocked(5)->fp32", "fp32 parts": "fp32:split(4)->bf16", "fp16 lanes apart": "fp16:lanes(3):fma->e5m2",
    "e4m3 e4m3fn": "e4m3fn", "fp16 e4m3fnuz": "e4m3fnuz", "wide nodes": WIDE_NODES,
    "fp16 exact": "exact", "fp32 in fp64": "fp64",
}  # fmt: skip
SPECIALS = {
    "ordinary": lambda x, generator: x,
    "overflow": lambda x, generator: x * np.exp2(generator.integers(0, 14, x.shape)),
    "subnormal": lambda x, generator: x * np.exp2(generator.integers(-16, -6, x.shape)),
    "zeros": lambda x, generator: np.where(generator.random(x.shape) < 0.6, np.copysign(0.0, x), x),
    "infinities": lambda x, generator: np.where(generator.random(x.shape) < 0.02, np.copysign(np.inf, x), x),
    "nan": lambda x, generator: np.where(generator.random(x.shape) < 0.02, np.nan, x),
    "everything": lambda x, generator: np.where(
        generator.random(x.shape) < 0.1, generator.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 2.0**-20], x.shape), x
    ),
}
SHAPES = ((1, 9, 40), (3, 9, 200), (37, 9, 64), (6, 64, 33))
#: Large enough for the rows and columns that are read as they lie.
LONG = ((1, 300, 1100), (2, 700, 600))
#: What the plain tests run: every mode has kernels of its own to compile, for which the exhaustive ones take the time.
OFTEN = {("fp16", mode) for mode in (Rounding.NEAREST_EVEN, Rounding.STOCHASTIC)} | {
    (name, Rounding.NEAREST_EVEN) for name in ("fp16 pairwise", "fp16 kahan", "fp16 parts", "wide nodes", "fp32 in fp64")
}

#: To nearest, every accumulator; of the other modes two each, in turn, and of the first all.
IN_TURN = [
    (name, mode)
    for place, name in enumerate(CASES)
    for number, mode in enumerate(Rounding)
    if mode is Rounding.NEAREST_EVEN or place == 0 or (number - 2 * place) % (len(Rounding) - 1) < 2
]
COUNTED = [case for case in IN_TURN if case[0] in ("fp16", "fp16 pairwise", "bf16 fma", "fp32", "fp16 parts")]


def task_of(name, mode):
    accumulator = get_accumulator(CASES[name])
    operand = "fp32" if name.startswith("fp32 in") else "bf16" if name.startswith("bf16") else "fp16"
    if name.startswith("e4m3"):
        operand = "e4m3fn"
    return Sum.of(get_format(operand), accumulator, mode)


def operands(task, shape, special, number=0):
    generator = np.random.default_rng(number)
    rows, leaves, columns = shape
    found = []
    for size in ((rows, leaves), (leaves, columns)):
        x = SPECIALS[special](generator.standard_normal(size), generator).astype(np.float32)
        round_into(x, x, task.operand, Rounding.NEAREST_EVEN)
        found.append(x)
    return found


def draws_for(task, columns):
    return Draws(seed_key(task.rounding, 5 if task.rounding is Rounding.STOCHASTIC else None), 3, columns)


def same(x, y):
    """Bit for bit, whatever the carrier; all NaN are one."""
    x, y = (np.asarray(value, np.float64) for value in (x, y))
    return ((x == y) & (np.signbit(x) == np.signbit(y))) | (np.isnan(x) & np.isnan(y))


def unsupported(task):
    try:
        task.require_arithmetic()
    except ValueError:
        return True
    return False


def agree(task, a, b):
    draws = draws_for(task, b.shape[1])
    serving = [route for route in ROUTES if task.accumulator.kind in route.kinds and route.serves(task, a, b)]
    assert serving
    results = {route.name: route.run(task, a, b, (), draws) for route in serving if can_run(route, task)}
    sure = results[list(results)[-1]]
    for name, result in results.items():
        assert same(result, sure).all(), name
    return set(results)


def can_run(route, task):
    """Nodes of float64 additions have no kernel, and say so."""
    return route.name != "nodes" or task.target.name != "fp64"


@pytest.mark.parametrize(("name", "mode"), often(itertools.product(CASES, Rounding), OFTEN))
def test_all_routes_agree(name, mode):
    task = task_of(name, mode)
    if unsupported(task):
        pytest.skip(f"{name} has no arithmetic in this mode")
    for shape, special in itertools.product(SHAPES, SPECIALS):
        if name == "wide nodes" and shape[1] != 9:
            continue
        agree(task, *operands(task, shape, special))


def test_every_route_is_taken_by_something():
    reached = set()
    for shape, columns_first in itertools.product((*SHAPES[:2], *LONG), (True, False)):
        for name in ("fp16", "fp16 kahan", "fp16 parts"):
            task = task_of(name, Rounding.NEAREST_EVEN)
            a, b = operands(task, shape, "overflow")
            reached |= agree(task, a, np.asfortranarray(b) if columns_first else b)
    chained = {route.name for route in ROUTES if set(route.kinds) & {TREE, PARTS}}
    assert reached == chained


@pytest.mark.parametrize(
    ("name", "mode"), often(COUNTED, {("fp16", Rounding.NEAREST_EVEN)})
)
def test_counts_of_pairs_are_the_sums_of_each(name, mode):
    task = task_of(name, mode)
    for shape, special in itertools.product(((21, 40, 70), (40, 6, 16)), ("ordinary", "overflow", "subnormal", "zeros")):
        pairs = [operands(task, shape, special, number) for number in range(3)]
        a, b = (np.stack(factors) for factors in zip(*pairs, strict=True))
        together, apart = Counters(), Counters()
        result = count_products(task, a, b, together)
        one_by_one = np.stack([count_product(task, left, right, Draws(), apart) for left, right in pairs])
        if result is None:
            declines = mode is Rounding.STOCHASTIC or task.accumulator.kind is not TREE
            assert together == Counters() and (special == "overflow" or declines)
        else:
            assert same(result, one_by_one).all() and together == apart, (shape, special)


@pytest.mark.parametrize(
    ("name", "mode"), often(COUNTED, {("fp16", Rounding.NEAREST_EVEN)})
)
def test_counts_and_error_sums_are_those_of_the_careful_kernel(name, mode):
    task = task_of(name, mode)
    for special in ("ordinary", "overflow", "subnormal", "zeros", "everything"):
        a, b = operands(task, (21, 40, 70), special)
        draws, known = draws_for(task, 70), plan(task, 40)
        quick, sure = Counters(), Counters()
        result = count_product(task, a, b, draws, quick)
        blocks = list(_products(known.careful, a, b, draws, sure))
        if task.accumulator.kind is TREE:
            assert same(result, blocks[0]).all() and quick == sure, special
        for part, block in zip(error_sums(task, a, b, draws, Kept()), blocks, strict=True):
            assert same(part.product, block).all(), special
