"""Convolutions of many groups: their sums lane by lane, the groups being the lanes, so that no group is a job of its own.

Operands are laid out with groups last, in blocks of LANES, and the one that is read tap by tap with its padding, and with
zeros between its elements where strides leave gaps. Results are those of the products group by group, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from fpsim.accumulation.kinds import PARTS
from fpsim.numbers.operands import as_read
from fpsim.sums.additions import add_rounded
from fpsim.sums.geometry import Geometry
from fpsim.sums.lanes import LANES, Factor, LaneSums, Numbers, serves
from fpsim.sums.observers.observer import SumObserver
from fpsim.sums.parts import no_parts
from fpsim.sums.phases import Phase, slices, whole
from fpsim.sums.plan import plan
from fpsim.sums.product import finish_into
from fpsim.sums.programs import node_after
from fpsim.sums.task import Draws, Sum
from fpsim.sums.windows import Reading, Window, reading, table

_BYTES = 8 << 20  # of operands and results at a time
_CALL = 250_000  # what a product of its own costs beside its sums, in multiply-adds
_GATHERED = 4  # what gathering one of its factors costs
_PAIRED = 1.3  # what a multiply-add costs whose factors both come from memory


@dataclass(frozen=True)
class Job:
    """What is done with the sums (see `sums.convolutions.Products`)."""

    task: Sum
    key: int
    observer: SumObserver | None
    before_rounding: Callable[[np.ndarray], None] | None


def is_quicker(task: Sum, groups: int, rows: int, leaves: int, columns: int) -> bool:
    """Whether lanes serve, and cost less than a product of (rows, leaves) and (leaves, columns) for each group."""
    padded = -(-rows // 4) * 4 * -(-columns // 32) * 32 if rows > 2 else rows * -(-columns // 128) * 128
    apart = groups * (_CALL + leaves * (padded + _GATHERED * columns))
    together = -(-groups // LANES) * LANES * rows * columns * leaves * _PAIRED
    return groups > 1 and 0 < together < apart and serves(task, leaves)


def forward_into(
    x: np.ndarray, weight: np.ndarray, out: np.ndarray, geometry: Geometry, job: Job, bias: np.ndarray | None
) -> None:
    """As `sums.convolutions.forward_into`."""
    phase = whole(geometry.kernel, geometry.grid, geometry.forward_axes)
    _columns_into(_by_outputs(weight, geometry), x, out, geometry.kernel, (phase,), job, bias)


def input_gradient_into(
    gradient: np.ndarray, weight: np.ndarray, out: np.ndarray, geometry: Geometry, phases: tuple[Phase, ...], job: Job,
    bias: np.ndarray | None,
) -> None:  # fmt: skip
    """As `sums.convolutions.input_gradient_into`, in these phases."""
    _columns_into(_by_outputs(weight, geometry).swapaxes(1, 2), gradient, out, geometry.kernel, phases, job, bias)


def weight_gradient_into(gradient: np.ndarray, x: np.ndarray, out: np.ndarray, geometry: Geometry, job: Job) -> None:
    """As `sums.convolutions.weight_gradient_into`."""
    groups, outer, inner = geometry.groups, geometry.outputs // geometry.groups, geometry.channels // geometry.groups
    images, taps, leaves = geometry.images, prod(geometry.kernel), geometry.images * prod(geometry.grid)
    read = reading(geometry.size, geometry.kernel, (whole(geometry.kernel, geometry.grid, geometry.forward_axes),))
    places = _weight_places(read, outer, inner, images)
    sums = _Sums(job, leaves, out.reshape(1, geometry.outputs, inner * taps), groups)
    gradient, x = as_read(gradient, job.task.left.enclosing), as_read(x, job.task.right.enclosing)
    for some, image in sums.pieces(images * inner * read.plane + outer * leaves):
        left = _laid_out(_by_groups(gradient, groups)[some], sums.dtype, zeros=1)
        right = _laid_out(_by_groups(x, groups)[some], sums.dtype, read.windows)
        sums.place(sums.made(leaves, left, right, places, some, image), some, image)
    sums.finish(None)


def _by_outputs(weight: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(groups, outputs of a group, channels of a group, taps)."""
    shape = (geometry.groups, geometry.outputs // geometry.groups, geometry.channels // geometry.groups)
    return weight.reshape(*shape, prod(geometry.kernel))


def _columns_into(
    factors: np.ndarray, source: np.ndarray, out: np.ndarray, kernel: tuple[int, ...], phases: tuple[Phase, ...], job: Job,
    bias: np.ndarray | None,
) -> None:  # fmt: skip
    """out[n, (g, i), p] = sum over (c, t) of factors[g, i, c, t] * what tap t of channel (g, c) of the source reads at p."""
    groups, rows, channels, taps = factors.shape
    grid = out.shape[2:]
    read = reading(source.shape[2:], kernel, phases)
    sums = _Sums(job, channels * taps, out, groups)
    factors, source = as_read(factors, job.task.left.enclosing), as_read(source, job.task.right.enclosing)
    for some, images in sums.pieces(channels * read.plane + rows * prod(grid)):
        left = _laid_out(factors[some], sums.dtype, zeros=1)
        right = _laid_out(_by_groups(source[images], groups)[some], sums.dtype, read.windows)
        columns = _column_places(read, rows, channels, taps, right.shape[2])
        for phase, places in zip(phases, columns, strict=True):
            sums.place(sums.made(places[2].size, left, right, places, some, images), some, images, slices(phase.positions))
    sums.finish(bias)


_Places = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@lru_cache(maxsize=64)
def _column_places(read: Reading, rows: int, channels: int, taps: int, images: int) -> list[_Places]:
    """For each phase what (row, image, position) and (channel, tap) add to a place in the left and in the right factor."""
    return [
        (
            table((rows, channels * taps), (images * own.positions.size, 0)) * LANES,
            table((rows, 0), (images, read.plane), own.positions) * LANES,
            table((channels, taps), own.which) * LANES,
            table((channels, images * read.plane), own.taps) * LANES,
        )
        for own in read.places
    ]


@lru_cache(maxsize=64)
def _weight_places(read: Reading, outer: int, inner: int, images: int) -> _Places:
    """What (output, channel, tap) and (image, position) add to a place in the gradient and in the input."""
    (own,) = read.places
    leaves = images * own.positions.size
    return (
        table((outer, leaves), (inner * own.taps.size, 0)) * LANES,
        table((outer, 0), (inner, images * read.plane), own.taps) * LANES,
        table((leaves, 1)) * LANES,
        table((images, read.plane), own.positions) * LANES,
    )


def _by_groups(x: np.ndarray, groups: int) -> np.ndarray:
    """(n, groups * c, ...) as (groups, c, n, ...)."""
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]).transpose(1, 2, 0, *range(3, x.ndim + 1))


def _laid_out(x: np.ndarray, dtype: np.dtype, windows: tuple[Window, ...] = (), zeros: int = 0) -> np.ndarray:
    """(groups, ..., axes) as (blocks, ..., windows of the axes, LANES), and `zeros` blocks more."""
    before = (slice(None),) * (x.ndim - len(windows))
    blocks, sizes = -(-len(x) // LANES) + zeros, tuple(window.size for window in windows)
    out = np.zeros((blocks, *x.shape[1 : len(before)], *sizes, LANES), dtype)
    inside = out[before + tuple(window.target for window in windows)]
    for own, lanes in _beside(x[before + tuple(window.source for window in windows)], inside):
        lanes[...] = own
    return out


def _beside(x: np.ndarray, lanes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Views of (groups, ...) and (blocks, ..., LANES) in one shape: of the whole blocks, and of what is left."""
    full = len(x) // LANES
    if full:
        yield np.moveaxis(x[: full * LANES].reshape(full, LANES, *x.shape[1:]), 1, -1), lanes[:full]
    if full * LANES < len(x):
        yield np.moveaxis(x[full * LANES :], 0, -1), lanes[full, ..., : len(x) - full * LANES]


class _Sums:
    """The accumulated sums, (images, outputs, columns ...), whose elements are numbered in that order, and what they become.

    Those of a piece come as (blocks, row, image, column, LANES).
    """

    def __init__(self, job: Job, leaves: int, out: np.ndarray, groups: int):
        self.job, self.out, self.groups, self.known = job, out, groups, plan(job.task, leaves)
        self.dtype, self.rows, self.columns = self.known.scheme.dtype, out.shape[1] // groups, prod(out.shape[2:])
        self.in_parts = job.task.accumulator.kind is PARTS
        held = no_parts(job.task, (0, 0)).dtype if self.in_parts else self.dtype
        self.total = out if held == out.dtype else np.empty(out.shape, held)

    def pieces(self, elements: int) -> Iterator[tuple[slice, slice]]:
        """Groups, in whole blocks, and images that are computed together, given what one of each takes."""
        images, size = len(self.out), LANES * self.dtype.itemsize * max(1, elements)
        together = max(1, min(images, _BYTES // size))
        at_once = max(1, _BYTES // (size * together)) * LANES
        for first in range(0, self.groups, at_once):
            for image in range(0, images, together):
                yield slice(first, min(first + at_once, self.groups)), slice(image, min(image + together, images))

    def made(
        self, leaves: int, left: np.ndarray, right: np.ndarray, places: _Places, some: slice, images: slice
    ) -> Iterator[np.ndarray]:
        """The sums of a piece for each program, (blocks, rows of `places`, LANES)."""
        a_rows, b_rows, a_steps, b_steps = places
        outputs, columns = self.out.shape[1], self.columns
        step = self.rows * columns
        rows = table((self.rows, columns), (images.stop - images.start, outputs * columns), (columns, 1))
        numbers = Numbers(rows, LANES * step, step, images.start * outputs * columns + some.start * step)
        known = self.known if leaves == self.known.leaves else plan(self.job.task, leaves)
        factors, count = (Factor(left, a_rows, a_steps), Factor(right, b_rows, b_steps)), (some.stop - some.start) * a_rows.size
        sums, observer = LaneSums(known, *factors, numbers, self.job.key, count), self.job.observer
        return sums.made() if observer is None else iter([observer.lanes(sums)])

    def place(self, found: Iterator[np.ndarray], some: slice, images: slice, columns: tuple[Any, ...] = ()) -> None:
        """The sums of a piece where they belong, in all columns or some; those of parts chained."""
        own = self.total[images, some.start * self.rows : some.stop * self.rows][columns]
        if not self.in_parts:
            self._copy(next(found), own)
            return
        task = self.job.task
        total, block = (np.zeros((*own.shape[:2], self.columns), dtype) for dtype in (own.dtype, self.dtype))
        for lines, part in zip(self.known.programs, found, strict=True):
            self._copy(part, block)
            for image in range(len(own)):
                first = ((images.start + image) * self.out.shape[1] + some.start * self.rows) * self.columns
                draws = Draws(self.job.key, first, self.columns)
                total[image] = add_rounded(total[image], block[image], task.held, task.rounding, draws, node_after(lines))
        own[...] = total.reshape(own.shape)

    def _copy(self, found: np.ndarray, own: np.ndarray) -> None:
        placed = _by_groups(own, own.shape[1] // self.rows)
        for target, lanes in _beside(placed, found.reshape(len(found), *placed.shape[1:], LANES)):
            target[...] = lanes

    def finish(self, bias: np.ndarray | None) -> None:
        """Add the bias (outputs), and round to the result."""
        job = self.job
        addends: Sequence[np.ndarray] = ()
        if bias is not None:
            addends = (np.broadcast_to(as_read(bias, job.task.operand), self.out.shape[:2]).reshape(-1, 1),)
        out = self.out.reshape(-1, self.columns)
        total = out if self.total is self.out else self.total.reshape(out.shape)
        finish_into(job.task, total, out, Draws(job.key, 0, self.columns), addends, job.observer, job.before_rounding)
