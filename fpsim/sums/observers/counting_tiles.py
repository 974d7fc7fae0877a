"""Products on one carrier whose kernels count: everything, sums alone, or float32 sums that are seldom swamped."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fpsim.backend import numba as kernels, threads
from fpsim.backend.numba.counted import TALLIES, sum_tallies
from fpsim.backend.numba.products import CHAIN
from fpsim.numbers.rounding import Rounding
from fpsim.sums.packing import LANES, Panels, aligned
from fpsim.sums.plan import Plan
from fpsim.sums.schemes import Scheme
from fpsim.sums.task import Draws
from fpsim.sums.tiles import Job

_COUNTED = 2**31  # additions, by tallies of 32 bits
_ROWS, _COPIED = 64, 2**24  # rows that repay a copy of a matrix, and elements that threads copy
_FEW = 0.5  # of the blocks: where more of them are looked at, it is quicker to look at all


class CountingJob(Job):
    """A job whose kernel counts `observed` (see `backend/numba/counted.py`), leaving out the tiles that must be done again."""

    may_skip = False

    def __init__(self, element: str, shape: tuple[int, int, int], depth: int, rounding: Rounding, draws: Draws, observed: int):
        super().__init__(element, shape, depth, rounding, draws)
        self.observed = observed
        self.counts = [0, 0, 0]
        self.largest = 0.0
        self.parent: CountingJob | None = None
        self._tallies: dict[int, np.ndarray] = {}  # by their number

    def _part(self, element: str, shape: tuple[int, int, int], draws: Draws) -> Job:
        part = CountingJob(element, shape, self.depth, self.rounding, draws, self.observed)
        part.counts = self.counts
        part.parent = self
        return part

    def _tallied(self, panels: Panels, out: np.ndarray) -> tuple[np.ndarray, ...]:
        count = -(-panels.columns // self.width) * self.groups * TALLIES * (64 // self.dtype.itemsize)
        if count not in self._tallies:  # else those of the program before: fresh memory takes as long as counting does
            self._tallies[count] = aligned(count, self.dtype)
        return (self._tallies[count],)

    def _absorb(self, overflowed: np.ndarray, tallied: tuple[np.ndarray, ...]) -> None:
        self.add(tallied[0], overflowed)

    def add(self, tallies: np.ndarray, overflowed: np.ndarray) -> None:
        """Add tallies of tiles, or of several, to the counts, unless they reached the limit."""
        tiles = tallies.reshape(overflowed.size, TALLIES, -1)
        sums = np.zeros(len(self.counts), dtype=np.int64)
        largest = float(sum_tallies(tiles, tiles.view(f"u{tiles.itemsize}"), overflowed.reshape(-1), sums))
        for place, count in enumerate(sums.tolist()):
            self.counts[place] += count
        for job in (self, self.parent):
            if job is not None:
                job.largest = max(job.largest, largest)


class SeldomSwampedJob(CountingJob):
    """A job of float32 sums that looks at them only where one may be swamped or, unless those `alone` count, be the largest.

    See `backend/numba/seldom_swamped.py`.
    """

    def __init__(self, shape: tuple[int, int, int], depth: int, rounding: Rounding, draws: Draws, alone: bool):
        seldom = kernels.seldom_swamped
        super().__init__("f4", shape, depth, rounding, draws, seldom.SWAMPED_ALONE if alone else seldom.SELDOM_SWAMPED)
        self.room, self.rooms = TALLIES * LANES["f4"], []
        self._lines: np.ndarray | None = None
        self._bounds: tuple[Any, ...] = ()  # those of the first panels, and of more of them, until they are used

    def suits(self, left: np.ndarray, right: list[Panels], lines: np.ndarray) -> bool:
        """Whether few blocks of the first panels are such that sums as large as what a block adds may be swamped in them."""
        self._look(left, lines)
        found = self._bound(right[0])
        self._bounds, doubtful = found[:-1], found[-1]
        return bool(doubtful <= _FEW)

    def run(self, left: np.ndarray, right: list[Panels], lines: np.ndarray, scheme: Scheme, flags: int) -> np.ndarray:
        self._look(left, lines)
        at_once = max(1, _COUNTED // (self.tile_rows * self.width * self.leaves))
        parts = [part for panels in right for part in _split(panels, at_once, self.width)]
        return super().run(left, parts, lines, scheme, flags)

    def _at_once(self, panels: int) -> int:
        return max(1, _COUNTED // (self.tile_rows * self.width * panels * self.leaves))

    def _look(self, left: np.ndarray, lines: np.ndarray) -> None:
        if self._lines is not lines:
            self._left, self._lines, self._blocks, self._bounds = left, lines, _blocks(lines.tobytes()), ()

    def _tallied(self, panels: Panels, out: np.ndarray) -> tuple[np.ndarray, ...]:
        found, self._bounds = self._bounds or self._bound(panels)[:-1], ()
        return found

    def _bound(self, panels: Panels) -> tuple[Any, ...]:
        """What `block_bounds.bounds_of_product` finds, most of it what the kernel observes chains by."""
        count, share = -(-panels.columns // self.width), kernels.block_bounds.swamped_share(self.rounding.code)
        data, panel_stride, leaf_stride, _, _ = panels
        found: tuple[Any, ...] = kernels.block_bounds.bounds_of_product(
            self._left, self.groups, self.tile_rows, data, count, panel_stride, leaf_stride, self.width, self.leaves,
            self._blocks, share,
        )  # fmt: skip
        return found

    def _absorb(self, overflowed: np.ndarray, tallied: tuple[np.ndarray, ...]) -> None:
        rooms, self.rooms = self.rooms, []
        self.add(rooms[0] if len(rooms) == 1 else np.concatenate(rooms), np.zeros(len(rooms), dtype=np.uint8))


def _split(panels: Panels, at_once: int, width: int) -> list[Panels]:
    """The same panels, so many at a time."""
    return [
        Panels(
            panels.data[first // width * panels.panel_stride :], panels.panel_stride, panels.leaf_stride,
            panels.first_column + first, min(at_once * width, panels.columns - first),
        )
        for first in range(0, panels.columns, at_once * width)
    ]  # fmt: skip


def swamped_products(planned: Plan, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, int] | None:
    """The products of (n, i, k) and (n, k, j), not empty, that are chains of float32's own additions, in one call of a kernel.

    With how many additions were swamped. None where operands are not finite, or so large that sums might overflow, and where
    threads would take longer to copy b, each for itself, than they gain.
    """
    batches, batch = kernels.batches, kernels.swamped_batches
    (pairs, rows, leaves), columns, lines, chosen = a.shape, b.shape[2], planned.programs[0], planned.scheme
    groups, width = -(-rows // batch.ROWS), batch.VECTORS * LANES["f4"]
    out = np.empty((pairs, groups * batch.ROWS, -(-columns // width) * width), np.float32)
    work = out.size * leaves
    parts = -(-len(threads.parts(pairs * groups, work)) // pairs)
    if parts > 1 and (rows < _ROWS * parts or b[0].size * parts > _COPIED):
        return None
    swamped = np.empty(pairs * parts, np.int64)
    function, blocks = batch.make_swamped_batch(planned.task.rounding.code, chosen.flags), _blocks(lines.tobytes())
    at_once = max(1, _COUNTED // (batch.ROWS * width * leaves))
    a, b = (x if min(x.strides) >= 0 else np.ascontiguousarray(x) for x in (a, b))
    where = (
        batches.packing_codes("f4", batch.ROWS, a, b), batches.matrices(a), batches.matrices(b), out, rows, columns, leaves,
        planned.depth, parts,
    )  # fmt: skip

    def task(first: int, last: int) -> None:
        function(*where, first, last, at_once, lines, blocks, chosen.row, swamped)

    threads.run(task, threads.parts(swamped.size, work))
    counts = swamped.tolist()
    return None if min(counts) < 0 else (out[:, :rows, :columns], sum(counts))


@lru_cache(maxsize=128)
def _blocks(program: bytes) -> np.ndarray:
    """The blocks of LANES terms, or what is left of them, of a program's chains: (first term, number of terms, stride)."""
    lines, lanes = np.frombuffer(program, np.int64).reshape(-1, 5), kernels.block_bounds.LANES
    first, count, stride = lines[lines[:, 0] == CHAIN, 1:4].T
    blocks = -(-count // lanes)
    chain = np.repeat(np.arange(count.size), blocks)
    done = (np.arange(chain.size) - (np.cumsum(blocks) - blocks)[chain]) * lanes
    return np.stack([first[chain] + stride[chain] * done, np.minimum(lanes, count[chain] - done), stride[chain]], axis=1)
