"""One product on one carrier: rows split among threads, tiles computed by a kernel, those that overflowed done again."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from fpsim.backend import threads
from fpsim.backend.numba.observed import NOTHING
from fpsim.backend.numba.products import fill_hashes, make_product
from fpsim.numbers.rounding import Rounding
from fpsim.sums.packing import LANES, Panels, aligned, pack_columns, pack_rows
from fpsim.sums.schemes import Scheme
from fpsim.sums.task import Draws

_rooms = threading.local()  # stacks
_NO_HASHES = np.zeros(1, dtype=np.uint32)
_NO_TALLIES = {element: (np.zeros(0, element),) for element in LANES}


def _stack(size: int, dtype: np.dtype) -> np.ndarray:
    """A thread's own room for a kernel's stack, the same for every call."""
    room: np.ndarray | None = getattr(_rooms, dtype.char, None)
    if room is None or room.size < size:
        room = aligned(size, dtype)
        setattr(_rooms, dtype.char, room)
    return room[:size]


def _tile(rows: int) -> tuple[int, int]:
    return (4, 2) if rows > 2 else (1, 8)


class Job:
    """One product on one carrier."""

    may_skip = True  # whether results that are known may be left uncomputed
    room = 0  # numbers at the end of a kernel's stack that it keeps from tile to tile
    rooms: list[np.ndarray]  # what was kept there

    def __init__(
        self, element: str, shape: tuple[int, int, int], depth: int, rounding: Rounding, draws: Draws
    ):
        self.observed = NOTHING  # what the kernel observes (see `backend/numba/products.py`)
        self.element, self.dtype = element, np.dtype(element)
        self.rows, self.columns, self.leaves = shape
        self.depth, self.rounding, self.draws = depth, rounding, draws
        self.tile_rows, self.vectors = _tile(self.rows)
        self.width = self.vectors * LANES[element]
        self.groups = -(-self.rows // self.tile_rows)
        self.overflowed: list[tuple[int, int, int, int]] = []  # row and column ranges

    def pack(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, list[Panels]]:
        return pack_rows(a, self.dtype, self.tile_rows), pack_columns(b, self.dtype, self.width, self.rows)

    def _kernel(self, flags: int) -> Any:
        shape = (self.element, self.tile_rows, self.vectors, self.rounding.code, flags)
        return make_product(*shape, self.observed)

    def _tallied(self, panels: Panels, out: np.ndarray) -> tuple[np.ndarray, ...]:
        """Further arguments of the kernel: where it keeps tallies, if at all."""
        return _NO_TALLIES[self.element]

    def _at_once(self, panels: int) -> int:
        """How many groups of rows the kernel takes at a time."""
        return max(1, self.groups)

    def _absorb(self, overflowed: np.ndarray, tallied: tuple[np.ndarray, ...]) -> None:
        """What becomes of them after a run; nothing here."""

    def _part(self, element: str, shape: tuple[int, int, int], draws: Draws) -> Job:
        """The job that computes a part of this one again."""
        return type(self)(element, shape, self.depth, self.rounding, draws)

    def run(self, left: np.ndarray, right: list[Panels], lines: np.ndarray, scheme: Scheme, flags: int) -> np.ndarray:
        """The product by the scheme's kernel with these flags; `overflowed` then lists the tiles that reached its limit."""
        function = self._kernel(flags)
        self.overflowed = []
        padded = 0
        for panels in right:
            padded += -(-panels.columns // self.width) * self.width
        out = np.empty((self.groups * self.tile_rows, padded), dtype=self.dtype)
        hashes, draws = _NO_HASHES, self.rounding is Rounding.STOCHASTIC
        if draws:
            table = np.empty(out.shape, dtype=np.uint32)
            key = np.uint64(self.draws.key)
            fill_hashes(table, key, self.draws.first, self.draws.row_step, self.draws.column_step)
            hashes = table.reshape(-1)
        size = self.tile_rows * self.width
        flat = out.reshape(-1)
        limit = self.dtype.type(scheme.limit)
        for panels in right:
            count = -(-panels.columns // self.width)
            overflowed = np.zeros((count, self.groups), dtype=np.uint8)
            tallied = self._tallied(panels, out)
            target = flat[panels.first_column :]
            hashed = hashes[panels.first_column :] if draws else hashes
            at_once = self._at_once(count)

            def task(
                first: int, last: int, panels: Panels = panels, count: int = count, overflowed: np.ndarray = overflowed,
                tallied: tuple[np.ndarray, ...] = tallied, target: np.ndarray = target, hashed: np.ndarray = hashed,
                at_once: int = at_once,
            ) -> None:  # fmt: skip
                stack = _stack(self.depth * size + self.room, self.dtype)
                for low in range(first, last, at_once):
                    if self.room:
                        stack[-self.room :] = 0
                    function(
                        left, panels.data, target, self.leaves, count, panels.panel_stride, panels.leaf_stride, low,
                        min(low + at_once, last), padded, lines, stack, scheme.row, hashed, limit, overflowed, *tallied,
                    )  # fmt: skip
                    if self.room:
                        self.rooms.append(stack[-self.room :].copy())

            work = self.groups * self.tile_rows * max(1, self.leaves) * count * self.width
            threads.run(task, threads.parts(self.groups, work))
            self._absorb(overflowed, tallied)
            if 1 not in overflowed.tobytes():
                continue
            for panel, group in np.argwhere(overflowed).tolist():
                column = panels.first_column + panel * self.width
                self.overflowed.append((group * self.tile_rows, column, self.tile_rows, self.width))
        return out[: self.rows, : self.columns]

    def redo(self, a: np.ndarray, b: np.ndarray, lines: np.ndarray, scheme: Scheme, out: np.ndarray) -> None:
        """Compute the tiles that reached the limit again, column range by column range, and write them to `out`.

        Where draws are numbered from row to row, all rows of them; else none with a NaN, which need no sums.
        """
        draws_run_on = self.rounding is Rounding.STOCHASTIC
        is_nan = np.isnan(a).any(axis=1) & (self.may_skip and not draws_run_on)
        out[is_nan] = np.nan
        by_columns: dict[tuple[int, int], list[int]] = {}
        for row, column, height, width in self.overflowed:
            by_columns.setdefault((column, width), []).extend(range(row, min(row + height, self.rows)))
        for (column, width), rows in by_columns.items():
            rows = list(range(self.rows)) if draws_run_on else [row for row in rows if not is_nan[row]]
            if not rows:
                continue
            columns = b[:, column : column + width]
            part = self._part(scheme.element, (len(rows), columns.shape[1], self.leaves), self.draws.at(0, column))
            out[rows, column : column + width] = part.run(*part.pack(a[rows], columns), lines, scheme, scheme.flags)
