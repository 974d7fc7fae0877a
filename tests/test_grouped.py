"""Convolutions of many groups, computed together, are those of their groups computed one by one, bit for bit."""

import contextlib
import itertools

import numpy as np
import pytest

import fpsim
from fpsim.arrays.convolution import conv, conv_input_gradient, conv_weight_gradient
from fpsim.backend import threads
from fpsim.numbers.computing import is_float64
from fpsim.numbers.rounding import Rounding
from fpsim.sums import convolutions, joined, routes, tiles
from fpsim.sums.observers import counting
from fpsim.sums.observers.counters import Counters
from fpsim.sums.plan import plan
from fpsim.sums.routes import ROUTES
from tests.frequency import often
from tests.test_routes import CASES, IN_TURN, SPECIALS, same, task_of, unsupported

#: x, weight, steps: one to three axes, multipliers, few and many channels a group, groups that fill no whole block.
SHAPES = (
    ((2, 20, 6, 5), (20, 1, 3, 3), {"padding": 1, "groups": 20}),
    ((1, 8, 9, 8), (16, 1, 3, 2), {"padding": 1, "stride": 2, "groups": 8}),
    ((3, 17, 11), (17, 1, 5), {"padding": 2, "stride": 3, "dilation": 2, "groups": 17}),
    ((2, 3, 5, 6, 4), (3, 1, 2, 3, 2), {"padding": (0, 1, 2), "stride": (1, 2, 1), "groups": 3}),
    ((2, 6, 7, 7), (4, 3, 3, 3), {"padding": 2, "stride": (2, 1), "dilation": (1, 2), "groups": 2}),
    ((1, 4, 7, 7), (4, 1, 1, 1), {"stride": 3, "groups": 4}),
)
NINE_TERMS = (((1, 6, 3, 3), (6, 1, 3, 3), {"padding": 1, "groups": 6}),)
CAREFUL = ("careful tiles", "careful parts", "nodes", "exact")
OFTEN = {("fp16", Rounding.STOCHASTIC)} | {
    (name, Rounding.NEAREST_EVEN) for name in ("fp16", "fp16 parts", "fp16 exact", "wide nodes")
}


def products(task, shape, special, counting=False):
    """The convolution with a bias and both gradients, and what each of them counted."""
    (x_shape, weight_shape, steps), generator = shape, np.random.default_rng(1)
    fmt, seed = task.operand, 5 if task.rounding is Rounding.STOCHASTIC else None
    counters = [Counters() if counting else None for _ in range(3)]
    how = [
        {**steps, "fmt": fmt, "accumulate": task.accumulator, "rounding": task.rounding, "seed": seed, "counters": own}
        for own in counters
    ]

    def some(size):
        values = SPECIALS[special](generator.standard_normal(size), generator)
        return fpsim.round(np.ascontiguousarray(values, np.float32), fmt)

    x, weight, bias = some(x_shape), some(weight_shape), some(weight_shape[:1])
    y = conv(x, weight, bias, **how[0])
    gradient = some(y.shape)
    for_x = conv_input_gradient(gradient, weight, x_shape, **how[1])
    return (y, for_x, conv_weight_gradient(gradient, x, weight_shape, **how[2])), counters


@contextlib.contextmanager
def careful_alone(task):
    """Products and counts by the careful kernels, where they serve, in tiles of one shape.

    They give what the others give: that is the law of `test_routes.py`, for the same cases, modes and kinds of numbers, with
    few rows and many. So the kernels of all other routes, several for each shape of a tile, need not be compiled here.
    """
    kind = task.accumulator.kind
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_tile", lambda rows: (4, 2))
        if not is_float64(task.target):
            patch.setitem(routes._OF, kind.name, [route for route in ROUTES if kind in route.kinds and route.name in CAREFUL])
            patch.setattr(counting, "plan", lambda task, leaves: plan(task, leaves).careful)
        yield


def both(monkeypatch, task, shape, special, counting=False):
    """The same with all groups together and group by group."""
    found = []
    for together in (True, False):
        monkeypatch.setattr(joined, "is_quicker", lambda task, groups, *_, together=together: together and groups > 1)
        with contextlib.nullcontext() if together else careful_alone(task):
            found.append(products(task, shape, special, counting))
    return found


@pytest.mark.parametrize(("name", "mode"), often(IN_TURN, OFTEN))
def test_groups_together_are_groups_apart(name, mode, monkeypatch):
    task = task_of(name, mode)
    if unsupported(task):
        pytest.skip(f"{name} has no arithmetic in this mode")
    shapes = NINE_TERMS if name == "wide nodes" else SHAPES
    for shape, special in itertools.product(shapes, ("ordinary", "overflow", "subnormal", "everything")):
        (together, _), (apart, _) = both(monkeypatch, task, shape, special)
        for left, right in zip(together, apart, strict=True):
            assert same(left, right).all(), (shape, special)


@pytest.mark.parametrize(
    ("name", "mode"),
    often(
        [("fp16", mode) for mode in Rounding]
        + [(name, Rounding.NEAREST_EVEN) for name in ("fp16 pairwise", "fp32", "fp16 parts", "fp32 in fp64")],
        {("fp16", Rounding.NEAREST_EVEN)},
    ),
)
def test_counts_are_those_of_groups_apart(name, mode, monkeypatch):
    task = task_of(name, mode)
    if unsupported(task):
        pytest.skip(f"{name} has no arithmetic in this mode")
    for shape, special in itertools.product(SHAPES, ("overflow", "subnormal", "everything")):
        together, apart = both(monkeypatch, task, shape, special, counting=True)
        assert together[1] == apart[1], (shape, special)


@pytest.mark.parametrize("mode", [Rounding.NEAREST_EVEN, Rounding.STOCHASTIC])
def test_pieces_and_threads_change_no_bit(mode, monkeypatch):
    task, shape = task_of("fp16", mode), ((3, 70, 30, 31), (70, 1, 3, 3), {"padding": 1, "groups": 70})
    whole, _ = products(task, shape, "everything")
    for size, count in ((1, 1), (200_000, 2)):
        monkeypatch.setattr(joined, "_BYTES", size)
        threads.set_num_threads(count)
        try:
            pieces, _ = products(task, shape, "everything")
        finally:
            threads.set_num_threads(None)
        assert all(same(left, right).all() for left, right in zip(whole, pieces, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_no_group_is_a_job(name, monkeypatch):
    def refuse(*_):
        raise AssertionError("a product for each group")

    monkeypatch.setattr(convolutions.Products, "product", refuse)
    shape = NINE_TERMS[0] if name == "wide nodes" else SHAPES[0]
    products(task_of(name, Rounding.NEAREST_EVEN), shape, "ordinary")
