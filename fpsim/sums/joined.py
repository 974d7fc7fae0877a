"""The products of a convolution: group by group, or the sums of all groups at once where that is quicker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from fpsim.accumulation.kinds import PARTS, TREE
from fpsim.numbers.operands import as_read
from fpsim.sums import lanes, written_out
from fpsim.sums.lanes import LANES, Factor, LaneSums, Numbers
from fpsim.sums.layout import beside, by_groups
from fpsim.sums.observers.observer import SumObserver
from fpsim.sums.parts import chained, no_parts
from fpsim.sums.plan import plan
from fpsim.sums.product import finish_into, product_into
from fpsim.sums.task import Draws, Sum
from fpsim.sums.windows import table

#: For the left and the right factor what each row, then what each leaf adds to a place, in numbers.
Places = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

_BYTES = 8 << 20  # of operands and results at a time
_CALL = 250_000  # what a product of its own costs beside its sums, in multiply-adds
_JOINED = 1_300_000  # the same of all groups at once
_GATHERED = 4  # what gathering one of its factors costs
_PAIRED = 1.3  # what a multiply-add costs whose factors both come from memory
_WRITTEN = 30  # what one costs whose product is written out


@dataclass(frozen=True)
class Products:
    """What is done with the products of matrices that a convolution is made of: what `product_into` takes beside arrays."""

    task: Sum
    key: int = 0
    observer: SumObserver | None = None
    before_rounding: Callable[[np.ndarray], None] | None = None

    def joined(self, groups: int, rows: int, leaves: int, columns: int) -> bool:
        """Whether sums of all groups at once are quicker than a product of (rows, leaves) and (leaves, columns) for each."""
        alone = self.task.split is not None or (self.observer is not None and self.task.accumulator.kind is not TREE)
        return not alone and is_quicker(self.task, groups, rows, leaves, columns)

    def product(
        self, left: np.ndarray, right: np.ndarray, out: np.ndarray, elements: tuple[int, int], addend: np.ndarray | None = None
    ) -> None:
        """out = left @ right (+ addend); element (i, j) draws as number elements[0] + i * elements[1] + j.

        What is gathered is the right factor.
        """
        addends = () if addend is None else (addend,)
        product_into(self.task, left, right, out, Draws(self.key, *elements), addends, self.observer, self.before_rounding)


def is_quicker(task: Sum, groups: int, rows: int, leaves: int, columns: int) -> bool:
    """Whether all groups can be computed together, at less than a product of (rows, leaves) and (leaves, columns) for each."""
    padded = -(-rows // 4) * 4 * -(-columns // 32) * 32 if rows > 2 else rows * -(-columns // 128) * 128
    apart = groups * (_CALL + leaves * (padded + _GATHERED * columns))
    together = -(-groups // LANES) * LANES * rows * columns * leaves
    if groups == 1 or not 0 < together * _PAIRED < apart - _JOINED:
        return False
    return lanes.serves(task, leaves) or (together * _WRITTEN < apart - _JOINED and written_out.serves(task, leaves))


class JoinedSums:
    """The accumulated sums, (images, outputs, columns ...), whose elements are numbered in that order, and what they become.

    Those of a piece come as (blocks, row, image, column, LANES).
    """

    def __init__(self, products: Products, leaves: int, out: np.ndarray, groups: int, bias: np.ndarray | None):
        self.products, self.out, self.groups, self.leaves = products, out, groups, leaves
        self.rows, self.columns = out.shape[1] // groups, prod(out.shape[2:])
        self.bias = None if bias is None else as_read(bias, products.task.operand)
        self.in_lanes, self.in_parts = lanes.serves(products.task, leaves), products.task.accumulator.kind is PARTS
        self.dtype = plan(products.task, leaves).scheme.dtype if self.in_lanes else np.dtype(np.float64)
        held = no_parts(products.task, (0, 0)).dtype if self.in_parts else self.dtype
        self.total = out if held == out.dtype else np.empty(out.shape, held)

    def pieces(self, elements: int) -> Iterator[tuple[slice, slice]]:
        """Groups, in whole blocks, and images that are computed together, given what one of each takes."""
        images, elements = len(self.out), elements if self.in_lanes else elements + self.leaves * self.rows * self.columns
        size = LANES * self.dtype.itemsize * max(1, elements)
        together = max(1, min(images, _BYTES // size))
        at_once = max(1, _BYTES // (size * together)) * LANES
        for first in range(0, self.groups, at_once):
            for image in range(0, images, together):
                yield slice(first, min(first + at_once, self.groups)), slice(image, min(image + together, images))

    def add(
        self, leaves: int, left: np.ndarray, right: np.ndarray, places: Places, some: slice, images: slice,
        columns: tuple[Any, ...] = (),
    ) -> None:  # fmt: skip
        """The sums of a piece, in all columns or some, from factors laid out, of which the left has a block of zeros more."""
        target = self.total[images, some.start * self.rows : some.stop * self.rows][columns]
        if self.in_lanes:
            a_rows, b_rows, a_steps, b_steps = places
            outputs, step = self.out.shape[1], self.rows * self.columns
            rows = table((self.rows, self.columns), (len(target), outputs * self.columns), (self.columns, 1))
            numbers = Numbers(rows, LANES * step, step, images.start * outputs * self.columns + some.start * step)
            factors = Factor(left, a_rows, a_steps), Factor(right, b_rows, b_steps)
            sums = LaneSums(plan(self.products.task, leaves), *factors, numbers, self.products.key, target.size)
            observer = self.products.observer
            self._place(sums.made() if observer is None else iter([observer.lanes(sums)]), target, some, images)
        else:
            self._write_out(left[:-1], right, places, target, some, images)

    def _write_out(
        self, left: np.ndarray, right: np.ndarray, places: Places, target: np.ndarray, some: slice, images: slice
    ) -> None:
        """The sums of products that are written out, image by image."""
        a_rows, b_rows, a_steps, b_steps = (x // LANES for x in places)
        factors = [
            values.reshape(len(values), -1, LANES)[:, rows.reshape(self.rows, len(target), 1, -1) + steps[:, None]]
            for values, rows, steps in ((left, a_rows, a_steps), (right, b_rows, b_steps))
        ]
        with np.errstate(invalid="ignore"):
            values = factors[0] * factors[1]
        products = np.empty((len(target), self.leaves, target.shape[1], self.columns))
        self._copy(values, products.swapaxes(1, 2))
        terms = []
        if self.products.task.accumulator.kind.own_addends and self.bias is not None:
            terms = [np.repeat(self.bias[some.start * self.rows : some.stop * self.rows], self.columns)]
        for image, numbers in enumerate(self._first_numbers(some, images)):
            draws, flat = Draws(self.products.key, numbers), products[image].reshape(self.leaves, target[image].size)
            sums = written_out.column_sums(self.products.task, flat, terms, draws, self.products.before_rounding)
            target[image] = sums.reshape(target[image].shape)

    def _first_numbers(self, some: slice, images: slice) -> Iterator[int]:
        """Of each image of a piece the number of the first element."""
        for image in range(images.start, images.stop):
            yield (image * self.out.shape[1] + some.start * self.rows) * self.columns

    def _place(self, sums: Iterator[np.ndarray], target: np.ndarray, some: slice, images: slice) -> None:
        """The sums of each program where they belong, those of parts chained."""
        if not self.in_parts:
            self._copy(next(sums), target)
            return
        task = self.products.task
        total, block = (np.zeros((*target.shape[:2], self.columns), dtype) for dtype in (target.dtype, self.dtype))
        for lines, part in zip(plan(task, self.leaves).programs, sums, strict=True):
            self._copy(part, block)
            for image, first in enumerate(self._first_numbers(some, images)):
                draws = Draws(self.products.key, first, self.columns)
                total[image] = chained(total[image], block[image], task, draws, lines)
        target[...] = total.reshape(target.shape)

    def _copy(self, sums: np.ndarray, out: np.ndarray) -> None:
        placed = by_groups(out, out.shape[1] // self.rows)
        for target, vectors in beside(placed, sums.reshape(len(sums), *placed.shape[1:], LANES)):
            target[...] = vectors

    def finish(self) -> None:
        """Add the bias, where it is no term of the sums, and round to the result."""
        products = self.products
        addends: Sequence[np.ndarray] = ()
        if self.bias is not None and not products.task.accumulator.kind.own_addends:
            addends = (np.broadcast_to(self.bias, self.out.shape[:2]).reshape(-1, 1),)
        out = self.out.reshape(-1, self.columns)
        total = out if self.total is self.out else self.total.reshape(out.shape)
        draws = Draws(products.key, 0, self.columns)
        finish_into(products.task, total, out, draws, addends, products.observer, products.before_rounding)
