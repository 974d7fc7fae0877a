"""Indices, slices and loops of kernels, which fpsim lowers itself, are Python's: each kernel's own source is the oracle."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.intrinsics import uninitialized

PLACES = (-9, -4, -1, 0, 1, 3, 4, 9)


@kernel
def elements(x: Any, i: int, j: int, k: int, out: Any) -> None:
    plane, line = x[i], x[i, j]
    out[0], out[1], out[2] = x[i, j, k], plane[j, k], line[k]
    plane[j, k] = 7
    line[0] = x[0, 1, np.uint64(2)]


@kernel
def views(x: Any, a: int, b: int, out: Any) -> None:
    place = 0
    for view in (x[a:b], x[a:], x[:b], x[:]):
        out[place] = view.size
        for number in view:
            out[place + 1] = 10 * out[place + 1] + number
        place += 2


@kernel
def views_of_planes(x: Any, a: int, b: int, out: Any) -> None:
    inner, outer, part = x[1, 2, a:b], x[a:b], x[0, a:b]
    out[0], out[1], out[2] = inner.size, outer.size, part.size
    out[3], out[4] = outer.shape[0], part.shape[1]
    if inner.size > 0:
        inner[-1] = 5
    if outer.size > 0:
        outer[0, 1, 1] = 6
    if part.size > 0:
        part[0, 2] = 8


@kernel
def steps(a: int, b: int, step: int, out: Any) -> None:
    place = 0
    for numbers in (range(b), range(a, b), range(a, b, 1), range(a, b, 3)):
        for number in numbers:
            out[place] = number
            place += 1
    for number in range(a, b, -2):
        out[place] = number
        place += 1
    for number in range(a, b, step):
        out[place] = number
        place += 1
    for _ in range(3):
        for number in range(a, b, 3):
            out[place] = number
            place += 1


def equal(compiled: Any, *arguments: Any) -> None:
    """Whether the kernel and Python leave the same in all arrays."""
    ours, python = ([item.copy() if isinstance(item, np.ndarray) else item for item in arguments] for _ in range(2))
    compiled(*ours)
    compiled.py_func(*python)
    for one, other in zip(ours, python, strict=True):
        np.testing.assert_array_equal(one, other)


def test_elements() -> None:
    x = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    for i, j, k in product((-2, -1, 0, 1), (-3, -1, 0, 2), (-4, -2, 0, 3)):
        equal(elements, x, i, j, k, np.zeros(3, np.int64))


def test_slices() -> None:
    for size, a, b in product((0, 1, 4), PLACES, PLACES):
        equal(views, np.arange(1, 1 + size), a, b, np.zeros(8, np.int64))


def test_slices_of_planes() -> None:
    for a, b in product(PLACES, PLACES):
        equal(views_of_planes, np.arange(2 * 3 * 4).reshape(2, 3, 4), a, b, np.zeros(5, np.int64))


def test_ranges() -> None:
    for a, b, step in product((-5, 0, 2, 7), (-5, -4, 0, 3, 7, 8), (-3, 1, 2)):
        equal(steps, a, b, step, np.zeros(128, np.int64))


def test_a_step_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be zero"):
        steps(0, 1, 0, np.zeros(128, np.int64))


@kernel
def _made(size: int) -> Any:
    return uninitialized(size, np.float64)


@kernel
def length_of_made(size: int) -> int:
    return _made(size).size


@kernel
def length(x: Any) -> int:
    return x[1:].size


def test_references_are_counted_where_arrays_are_made() -> None:
    """A kernel that only calls what makes arrays has to free them."""
    assert [item.targetoptions["_nrt"] for item in (_made, length_of_made, length)] == [True, True, False]
    assert length_of_made(3) == 3 and length(np.zeros(3)) == 2
