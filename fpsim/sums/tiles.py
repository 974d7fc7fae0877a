"""One product on one carrier: packing operands, splitting rows among threads, redoing the tiles that overflowed."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fpsim.backend import threads
from fpsim.numbers.formats import FP32, FP64, Format
from fpsim.numbers.rounding import Rounding, round_into
from fpsim.sums.plan import Scheme, careful_scheme, is_like

LANES = {"f4": 16, "f8": 8}
_LINE = 64  # bytes of a line of the cache
_LARGE = 2**17  # numbers of an operand that is packed from the beginning of a line
_own = threading.local()  # stacks
_NEAR = 32 << 10  # bytes that stay in the nearest cache
_NO_HASHES = np.zeros(1, dtype=np.uint32)
_NO_TALLIES = {element: (np.zeros(0, element),) for element in LANES}


class Draws(NamedTuple):
    """Where stochastic draws come from: a key, and the row-major number of element (i, j) of the result."""

    key: int = 0
    first: int = 0
    row_step: int = 0
    column_step: int = 1


class Panels(NamedTuple):
    """Columns of an operand as a kernel reads them: a flat array, its strides, and which columns it holds."""

    data: np.ndarray
    panel_stride: int
    leaf_stride: int
    first_column: int
    columns: int


def _tile(element: str, rows: int) -> tuple[int, int]:
    return (4, 2) if rows > 2 else (1, 8)


@cache
def _kernels() -> Any:
    """The module of kernels, imported when the first product runs."""
    from fpsim.backend.numba import products

    return products


@cache
def _packing() -> Any:
    """The module of copies, imported likewise."""
    from fpsim.backend.numba import packing

    return packing


def aligned(size: int, dtype: np.dtype) -> np.ndarray:
    """Room from the beginning of a line of the cache: a vector that lies in two lines is read twice."""
    room = np.empty(size * dtype.itemsize + _LINE, dtype=np.uint8)
    first = -room.ctypes.data % _LINE
    return room[first : first + size * dtype.itemsize].view(dtype)


def _packing_room(size: int, dtype: np.dtype) -> np.ndarray:
    """Room for a packed operand; where it is small, looking for a line of the cache would take longer than it saves."""
    return np.empty(size, dtype) if size < _LARGE else aligned(size, dtype)


def _stack(size: int, dtype: np.dtype) -> np.ndarray:
    """A thread's own room for a kernel's stack, the same for every call."""
    room: np.ndarray | None = getattr(_own, dtype.char, None)
    if room is None or room.size < size:
        room = aligned(size, dtype)
        setattr(_own, dtype.char, room)
    return room[:size]


def line_of(x: np.ndarray, count: int) -> np.ndarray:
    """The memory of x from its first element on, `count` elements that lie side by side."""
    return x.reshape(-1) if x.flags.c_contiguous else np.lib.stride_tricks.as_strided(x, (count,), (x.itemsize,))


def _is_of_lines(x: np.ndarray) -> bool:
    """Whether the elements of each row lie side by side, and rows follow each other in whole elements."""
    return x.strides[1] == x.itemsize and x.strides[0] >= 0 and x.strides[0] % x.itemsize == 0


def pack_columns(b: np.ndarray, dtype: np.dtype, width: int, rows: int) -> list[Panels]:
    """Panels of `width` columns: read in place where few rows would not repay a copy, or all of it is near anyway."""
    leaves, columns = b.shape
    whole = columns // width * width
    found = []
    in_place = (rows <= 4 or b.nbytes <= _NEAR) and whole and leaves and b.dtype == dtype
    if in_place and b.strides[1] == b.itemsize and b.strides[0] >= 0:
        leaf_stride, rest = divmod(b.strides[0], b.itemsize)
        if rest == 0:
            flat = line_of(b, (leaves - 1) * leaf_stride + columns)
            found.append(Panels(flat, width, leaf_stride, 0, whole))
            if whole == columns:
                return found
            b = b[:, whole:]
    start = columns - b.shape[1]
    panels = -(-b.shape[1] // width)
    packed = _packing_room(max(1, panels * leaves * width), dtype)
    stride, rest = divmod(b.strides[1], b.itemsize)
    if b.dtype == dtype and b.strides[0] == b.itemsize and stride >= leaves and not rest and b.size:
        _packing().pack_lines(line_of(b.T, (b.shape[1] - 1) * stride + leaves), stride, b.shape[1], leaves, packed, width)
    elif b.dtype == dtype and b.size and _is_of_lines(b):
        stride = b.strides[0] // b.itemsize
        line = line_of(b, (leaves - 1) * stride + b.shape[1])
        _packing().pack_lines_across(line, stride, b.shape[1], leaves, packed, width)
    else:
        _kernels().pack_columns(b, packed, width)
    found.append(Panels(packed, leaves * width, width, start, b.shape[1]))
    return found


def pack_rows(a: np.ndarray, dtype: np.dtype, rows: int) -> np.ndarray:
    count, leaves = a.shape
    if rows == 1 and a.dtype == dtype and a.flags.c_contiguous:
        return a.reshape(-1) if a.size else np.zeros(1, dtype)
    groups = -(-count // rows)
    packed = _packing_room(max(1, groups * rows * leaves), dtype)
    if rows == 4 and a.size and a.dtype == dtype and _is_of_lines(a):
        stride = a.strides[0] // a.itemsize
        _packing().pack_four_lines(line_of(a, (count - 1) * stride + leaves), stride, count, leaves, packed)
    else:
        _kernels().pack_rows(a, packed, rows, 0, groups)
    return packed


def largest_and_smallest(packed: np.ndarray) -> tuple[float, float]:
    """The largest magnitude (infinity for a NaN) and the smallest nonzero one (infinity if there is none)."""
    high, low = _kernels().extent(packed)
    return float(high), float(low)


def extents_of_products(left: np.ndarray, right: list[np.ndarray]) -> tuple[float, float]:
    """The product of both operands' largest magnitudes, and that of their smallest nonzero ones; all flat."""
    high, low, highest, lowest = _kernels().extents(left, right[0])
    for part in right[1:]:
        more, less = largest_and_smallest(part)
        highest, lowest = max(highest, more), min(lowest, less)
    return high * highest, low * lowest


def without_nan(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The rows of a and the columns of b that have no NaN, as masks; None if all have none."""
    rows, columns = ~np.isnan(a).any(axis=1), ~np.isnan(b).any(axis=0)
    return None if rows.all() and columns.all() else (rows, columns)


class Job:
    """One product on one carrier."""

    may_skip = True  # whether results that are known may be left uncomputed
    room = 0  # numbers at the end of a kernel's stack that it keeps from tile to tile
    rooms: list[np.ndarray]  # what was kept there

    def __init__(
        self, element: str, shape: tuple[int, int, int], depth: int, rounding: Rounding, draws: Draws, kind: str = "tree"
    ):
        self.kind = kind
        self.what: int | None = None  # what the kernel observes (see `backend/numba/products.py`)
        self.element, self.dtype = element, np.dtype(element)
        self.rows, self.columns, self.leaves = shape
        self.depth, self.rounding, self.draws = depth, rounding, draws
        self.tile_rows, self.vectors = _tile(element, self.rows)
        self.width = self.vectors * LANES[element]
        self.groups = -(-self.rows // self.tile_rows)
        self.passed: list[tuple[int, int, int, int]] = []  # row and column ranges

    def pack(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, list[Panels]]:
        return pack_rows(a, self.dtype, self.tile_rows), pack_columns(b, self.dtype, self.width, self.rows)

    def _kernel(self, flags: int) -> Any:
        shape = (self.element, self.tile_rows, self.vectors, self.rounding.code, flags)
        if self.kind == "tree":
            return _kernels().make_product(*shape, *([] if self.what is None else [self.what]))
        from fpsim.backend.numba.compensated import make_compensated

        return make_compensated(*shape, int(self.kind == "neumaier"))

    def _tallied(self, panels: Panels, out: np.ndarray) -> tuple[np.ndarray, ...]:
        """Further arguments of the kernel: where it keeps tallies, if at all."""
        return _NO_TALLIES[self.element] if self.kind == "tree" else ()

    def _absorb(self, passed: np.ndarray, tallied: tuple[np.ndarray, ...]) -> None:
        """What becomes of them after a run; nothing here."""

    def _part(self, element: str, shape: tuple[int, int, int], draws: Draws) -> Job:
        """The job that computes a part of this one again."""
        return Job(element, shape, self.depth, self.rounding, draws, self.kind)

    def run(
        self, left: np.ndarray, right: list[Panels], lines: np.ndarray, flags: int, row: np.ndarray, limit: float
    ) -> np.ndarray:
        """The product; afterwards `passed` lists the tiles whose magnitudes reached the limit."""
        function = self._kernel(flags)
        self.passed = []
        padded = 0
        for panels in right:
            padded += -(-panels.columns // self.width) * self.width
        out = np.empty((self.groups * self.tile_rows, padded), dtype=self.dtype)
        hashes, draws = _NO_HASHES, self.rounding is Rounding.STOCHASTIC
        if draws:
            table = np.empty(out.shape, dtype=np.uint32)
            key = np.uint64(self.draws.key)
            _kernels().fill_hashes(table, key, self.draws.first, self.draws.row_step, self.draws.column_step)
            hashes = table.reshape(-1)
        size = self.tile_rows * self.width
        flat = out.reshape(-1)
        limit_value = self.dtype.type(limit)
        for panels in right:
            count = -(-panels.columns // self.width)
            passed = np.zeros((count, self.groups), dtype=np.uint8)
            tallied = self._tallied(panels, out)
            own = flat[panels.first_column :]
            own_hashes = hashes[panels.first_column :] if draws else hashes

            def task(
                first: int, last: int, panels: Panels = panels, count: int = count, passed: np.ndarray = passed,
                tallied: tuple[np.ndarray, ...] = tallied, own: np.ndarray = own, own_hashes: np.ndarray = own_hashes,
            ) -> None:  # fmt: skip
                stack = _stack(self.depth * size + self.room, self.dtype)
                if self.room:
                    stack[-self.room :] = 0
                function(
                    left, panels.data, own, self.leaves, count, panels.panel_stride, panels.leaf_stride, first, last, padded,
                    lines, stack, row, own_hashes, limit_value, passed, *tallied,
                )  # fmt: skip
                if self.room:
                    self.rooms.append(stack[-self.room :].copy())

            work = self.groups * self.tile_rows * max(1, self.leaves) * count * self.width
            threads.run(task, threads.parts(self.groups, work))
            self._absorb(passed, tallied)
            if 1 not in passed.tobytes():
                continue
            for panel, group in np.argwhere(passed).tolist():
                column = panels.first_column + panel * self.width
                self.passed.append((group * self.tile_rows, column, self.tile_rows, self.width))
        return out[: self.rows, : self.columns]

    def redo(self, a: np.ndarray, b: np.ndarray, lines: np.ndarray, how: Scheme, out: np.ndarray) -> None:
        """Compute the tiles that passed the limit again, column range by column range, and write them to `out`.

        Where draws are numbered from row to row, all rows of them; else none with a NaN, which need no sums.
        """
        draws_run_on = self.rounding is Rounding.STOCHASTIC
        is_nan = np.isnan(a).any(axis=1) & (self.may_skip and not draws_run_on)
        out[is_nan] = np.nan
        by_columns: dict[tuple[int, int], list[int]] = {}
        for row, column, height, width in self.passed:
            by_columns.setdefault((column, width), []).extend(range(row, min(row + height, self.rows)))
        for (column, width), rows in by_columns.items():
            rows = list(range(self.rows)) if draws_run_on else [row for row in rows if not is_nan[row]]
            if not rows:
                continue
            columns = b[:, column : column + width]
            key, first = self.draws.key, self.draws.first + column * self.draws.column_step
            draws = Draws(key, first, self.draws.row_step, self.draws.column_step)
            shape = (len(rows), columns.shape[1], self.leaves)
            part = self._part(how.element, shape, draws)
            packed = part.pack(a[rows], columns)
            out[rows, column : column + width] = part.run(*packed, lines, how.flags, how.row, how.limit)


def _adds_in_single(target: Format) -> bool:
    """Whether a float32 sum of two values, rounded once more to nearest even, is their sum rounded once: 2p + 2 bits do."""
    quantum = target.emin - target.precision + 1
    return 2 * target.precision + 2 <= 24 and quantum >= -149 and target.emax <= 127 and target.flush is None


def add_rounded(
    x: np.ndarray, y: np.ndarray, target: Format, rounding: Rounding, draws: Draws, node: int, residual: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """rounded(x + y) of two matrices, as node number `node`: values of `target`, or any float64 with `residual`.

    `out`, x itself if its elements are of no further use, may receive the result: fresh memory costs more than the sums.
    """
    rows, columns = x.shape
    if is_like(target, FP64):  # computed to nearest even only, with one rounding of float64's own
        with np.errstate(all="ignore"):
            return np.add(x, y, dtype=np.float64)
    if is_like(target, FP32) and rounding is Rounding.NEAREST_EVEN and not residual:
        with np.errstate(all="ignore"):
            return np.add(x, y, out=out, dtype=np.float32, casting="same_kind")  # both are float32 values, added as IEEE says
    if x.dtype == np.float32 and rounding is Rounding.NEAREST_EVEN and not residual and _adds_in_single(target):
        with np.errstate(all="ignore"):
            total: np.ndarray = np.add(x, y, out=out, dtype=np.float32, casting="same_kind", order="C")
        round_into(total, total, target, rounding)
        return total
    careful = careful_scheme(target, rounding, residual)
    padded = -(-max(1, columns) // 8) * 8
    out = np.zeros((rows, padded))
    right = np.zeros((rows, padded))
    out[:, :columns], right[:, :columns] = x, y
    hashes = np.zeros((rows, padded), dtype=np.uint32)
    if rounding is Rounding.STOCHASTIC:
        _kernels().fill_hashes(hashes, np.uint64(draws.key), draws.first, draws.row_step, draws.column_step)
    function = _kernels().make_add(rounding.code, careful.flags)
    function(out.reshape(-1), right.reshape(-1), careful.row, hashes.reshape(-1), node)
    return out[:, :columns]
