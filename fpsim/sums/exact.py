"""Exact sums of exact products, rounded once: products split into bins that float64 adds without error, else integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fpsim.backend import numba as kernels, threads
from fpsim.numbers.computing import is_float64
from fpsim.numbers.formats import Format
from fpsim.numbers.operations import odd_sum
from fpsim.numbers.rounding import Rounding
from fpsim.sums.additions import add_rounded
from fpsim.sums.exact_integers import exact_pairs
from fpsim.sums.orientation import is_turned
from fpsim.sums.packing import largest_and_smallest, pack_columns, pack_rows
from fpsim.sums.task import Draws, Sum


def watched_product(
    task: Sum, a: np.ndarray, b: np.ndarray, draws: Draws, before_rounding: Callable[[np.ndarray], None],
    addends: Sequence[np.ndarray] = (),
) -> np.ndarray:  # fmt: skip
    """`exact_product`; `before_rounding` is called with the sums, which float64 holds rounded to odd: on the same side of
    whatever numbers of 51 bits."""
    if not is_turned(task, a, b):
        return exact_product(task, a, b, addends, draws, before_rounding)
    turned = [term.T for term in addends]
    return exact_product(task.transposed, b.T, a.T, turned, draws.transposed, lambda sums: before_rounding(sums.T)).T


def exact_product(
    task: Sum, a: np.ndarray, b: np.ndarray, terms: Sequence[np.ndarray], draws: Draws,
    before_rounding: Callable[[np.ndarray], None] | None = None,
) -> np.ndarray:  # fmt: skip
    """The exact sum of exact products and `terms` (arrays of the result's shape), rounded once to the result's format."""
    numbers = [a, b, *terms]
    finite = all(bool(np.isfinite(x).all()) for x in numbers)
    left, right, *added = numbers if finite else [np.where(np.isfinite(x), x, 0) for x in numbers]
    pair = _binned(left, right, task.operand, added) if _multiplies_exactly(left, right, task.operand) else None
    if pair is None:
        pair = exact_pairs(left, right, added, isinstance(task.result, Format) and is_float64(task.result))
    high, low = pair
    if task.rounding is Rounding.DOWN and (a.shape[1] or terms):
        low[(high == 0) & (low == 0)] = -0.0  # an exact zero is -0 under down
    if not finite:
        with np.errstate(invalid="ignore"):  # a signaling NaN is no error here
            signs = [np.where(np.isfinite(x), np.sign(x), x).astype(np.float64) for x in numbers]  # nothing overflows
            special = sum(signs[2:], signs[0] @ signs[1])
        high = np.where(np.isfinite(special), high, special)
        low = np.where(np.isfinite(special), low, 0)
    if before_rounding is not None:
        before_rounding(odd_sum(high, low, task.rounding))
    return add_rounded(high, low, task.result, task.rounding, draws, 0, residual=True)


def _multiplies_exactly(a: np.ndarray, b: np.ndarray, operand: Format) -> bool:
    """Whether float64 holds the significands of all products: where one factor is powers of two, as in sums, of fp64 too."""
    return operand.precision <= 24 or any(bool(np.isin(np.abs(np.frexp(x)[0]), (0.0, 0.5)).all()) for x in (b, a))


def _binned(
    a: np.ndarray, b: np.ndarray, operand: Format, terms: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """The exact sums of finite numbers as high + low, products and sums being exact in float64; None where they are not."""
    height, width = kernels.exact.ROWS, kernels.exact.LANES  # of a tile
    (rows, leaves), columns = a.shape, b.shape[1]
    left = pack_rows(a, np.dtype("f8"), height)
    right = pack_columns(b, np.dtype("f8"), width, rows + height)[0]
    plan = _bins(left, right.data, operand, leaves)
    if plan is None:
        return None
    shifts, bins = plan
    groups, panels = -(-rows // height), -(-columns // width)
    stride = panels * width
    bin_stride = groups * height * stride
    sums = np.empty((bins + len(terms), groups * height, stride))
    function = kernels.exact.make_exact(bins)

    def some(first: int, last: int) -> None:
        function(
            left, right.data, sums.reshape(-1), leaves, panels, right.panel_stride, right.leaf_stride, first, last,
            stride, bin_stride, shifts,
        )  # fmt: skip

    threads.run(some, threads.parts(groups, rows * max(1, leaves) * columns))
    for place, term in enumerate(terms):
        sums[bins + place] = 0
        sums[bins + place, :rows, :columns] = term
    high, low = np.empty(bin_stride), np.empty(bin_stride)
    kernels.exact.combine(sums.reshape(bins + len(terms), bin_stride), high, low)
    whole = [x.reshape(-1, stride)[:rows, :columns] for x in (high, low)]
    return whole[0], whole[1]


def _bins(left: np.ndarray, right: np.ndarray, operand: Format, leaves: int) -> tuple[np.ndarray, int] | None:
    """The constants that split products into bins, from the operands' magnitudes, and how many bins there are.

    None where a constant, or a sum, leaves float64's range.
    """
    tops, quanta = [], []
    for packed in (left, right):
        high, low = largest_and_smallest(packed)
        if high == 0:
            return np.zeros(1), 1
        tops.append(int(np.frexp(high)[1]))
        quanta.append(max(int(np.frexp(low)[1]) - 1, operand.emin) - operand.precision + 1)
    width = min(50, 51 - max(1, leaves).bit_length())
    place, last = sum(tops) - width, sum(quanta)
    if place + 53 > 1023 or sum(tops) + leaves.bit_length() > 1022 or last < -1074:
        return None
    shifts = []
    while place > last:
        shifts.append(1.5 * 2.0 ** (place + 52))
        place -= width
    return np.array([*shifts, 0.0]), len(shifts) + 1
