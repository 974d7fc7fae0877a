"""Running product kernels: packing operands, choosing tiles, splitting rows among threads, redoing what overflowed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fpsim import threads
from fpsim._product_plans import Scheme, careful_scheme, growth, is_like, program, scheme
from fpsim.accumulation.orders import sequential
from fpsim.accumulation.trees import ADD, Tree
from fpsim.formats import FP32, Format
from fpsim.rounding import Rounding

_LANES = {"f4": 16, "f8": 8}
_NO_LINES = np.zeros((1, 5), dtype=np.int64)
_CHUNK = 2**20  # elements
_NO_HASHES = np.zeros((1, 1), dtype=np.uint32)


@dataclass(frozen=True)
class Draws:
    """Where stochastic draws come from: a key, and the row-major number of element (i, j) of the result."""

    key: int = 0
    first: int = 0
    row_step: int = 0
    column_step: int = 1


@dataclass(frozen=True)
class Panels:
    """Columns of an operand as a kernel reads them: a flat array, its strides, and which columns it holds."""

    data: np.ndarray
    panel_stride: int
    leaf_stride: int
    first_column: int
    columns: int


def _tile(element: str, rows: int) -> tuple[int, int]:
    return (4, 2) if rows > 2 else (1, 8)


def pack_columns(b: np.ndarray, dtype: np.dtype, width: int, rows: int) -> list[Panels]:
    """Panels of `width` columns: read in place where few rows would not repay a copy."""
    from fpsim._kernels import products as kernels

    leaves, columns = b.shape
    whole = columns // width * width
    found = []
    if rows <= 4 and whole and b.dtype == dtype and b.strides[1] == b.itemsize and b.strides[0] >= 0 and leaves:
        leaf_stride, rest = divmod(b.strides[0], b.itemsize)
        if rest == 0:
            flat = np.lib.stride_tricks.as_strided(b, ((leaves - 1) * leaf_stride + columns,), (b.itemsize,))
            found.append(Panels(flat, width, leaf_stride, 0, whole))
            if whole == columns:
                return found
            b = b[:, whole:]
    start = columns - b.shape[1]
    panels = -(-b.shape[1] // width)
    packed = np.empty(max(1, panels * leaves * width), dtype=dtype)
    kernels.pack_columns(b, packed, width)
    found.append(Panels(packed, leaves * width, width, start, b.shape[1]))
    return found


def _pack_rows(a: np.ndarray, dtype: np.dtype, rows: int) -> np.ndarray:
    from fpsim._kernels import products as kernels

    count, leaves = a.shape
    if rows == 1 and a.dtype == dtype and a.flags.c_contiguous:
        return a.reshape(-1) if a.size else np.zeros(1, dtype)
    groups = -(-count // rows)
    packed = np.empty(max(1, groups * rows * leaves), dtype=dtype)
    kernels.pack_rows(a, packed, rows, 0, groups)
    return packed


def _largest_and_smallest(packed: np.ndarray) -> tuple[float, float]:
    """The largest magnitude (infinity for a NaN) and the smallest nonzero one (infinity if there is none)."""
    from fpsim._kernels import products as kernels

    high, low = kernels.extent(packed)
    return float(high), float(low)


def _is_one_chain(tree: Tree) -> bool:
    return bool(tree.steps[0] == -2 and not np.any(tree.steps >= 0) and not np.any(tree.steps == ADD))


@lru_cache(maxsize=256)
def _plan(
    tree: Tree, operand: Format, target: Format, rounding: Rounding, exact_products: bool
) -> tuple[Scheme, float]:
    """The scheme, and how far a partial sum may exceed the mean of the leaves' magnitudes times their number."""
    chosen = scheme(operand, target, rounding, exact_products, tree.is_chains)
    return chosen, growth(tree, target, rounding, _is_one_chain(tree))


def _flags(
    chosen: Scheme, bound: float, target: Format, rounding: Rounding, left: np.ndarray, right: list[Panels], rows: int
) -> int:
    """The scheme's flags and those that the operands' magnitudes call for."""
    from fpsim._kernels.sums_rounding import CAREFUL, CLAMP, NATIVE, TRACK, TRACK_SUMS

    if chosen.flags & (CAREFUL | NATIVE):
        return chosen.flags
    if rows <= 4:
        return chosen.flags | CLAMP | TRACK  # looking through `right` would cost as much as it saves
    high, low = _largest_and_smallest(left)
    extents = [_largest_and_smallest(panels.data) for panels in right]
    highs, lows = high * max(e[0] for e in extents), low * min(e[1] for e in extents)
    # Each set of flags is a kernel to compile: the fullest choice is for the commonest case alone.
    few = chosen.element == "f4" and rounding is Rounding.NEAREST_EVEN and not chosen.flags
    flags = chosen.flags
    if not lows >= target.min_normal:
        flags |= CLAMP
    leaf = highs * (1 + 2 * target.unit_roundoff) + target.min_normal
    if not bound * leaf < chosen.limit:
        flags |= CLAMP | (TRACK_SUMS if few and leaf < chosen.limit else TRACK)
    return flags if few else flags | CLAMP


def tree_product(
    a: np.ndarray, b: np.ndarray, operand: Format, target: Format, rounding: Rounding, tree: Tree, exact_products: bool,
    draws: Draws,
) -> np.ndarray:  # fmt: skip
    """a @ b along a tree, every addition rounded to `target`: a new array of float32 or float64."""
    return next(_products(a, b, operand, target, rounding, tree, exact_products, draws, [program(tree)]))


def promoted_product(
    a: np.ndarray, b: np.ndarray, operand: Format, narrow: Format, wide: Format, rounding: Rounding, size: int,
    exact_products: bool, draws: Draws,
) -> np.ndarray:  # fmt: skip
    """Blocks of `size` terms, each a chain from +0 in `narrow`, their sums chained in `wide` from +0."""
    from fpsim._kernels.products import CHAIN, PUSH_ZERO

    leaves = a.shape[1]
    starts = range(0, leaves, size)
    programs, node = [], 0
    for start in starts:
        count = min(size, leaves - start)
        programs.append(np.array([(PUSH_ZERO, 0, 1, 1, 0), (CHAIN, start, count, 1, node)], dtype=np.int64))
        node += count + 1
    dtype = np.float32 if is_like(wide, FP32) else np.float64
    total: np.ndarray = np.zeros((a.shape[0], b.shape[1]), dtype=dtype)
    blocks = _products(a, b, operand, narrow, rounding, sequential(leaves), exact_products, draws, programs)
    for lines, block in zip(programs, blocks, strict=True):
        total = add_rounded(total, block, wide, rounding, draws, int(lines[1, 2] + lines[1, 4]))
    return total


def _products(
    a: np.ndarray, b: np.ndarray, operand: Format, target: Format, rounding: Rounding, tree: Tree, exact_products: bool,
    draws: Draws, programs: list[np.ndarray],
) -> Iterator[np.ndarray]:  # fmt: skip
    """One array for each program; `tree` bounds their partial sums and their stacks."""
    (rows, leaves), columns = a.shape, b.shape[1]
    if columns < 32 and rows > columns:
        swapped = Draws(draws.key, draws.first, draws.column_step, draws.row_step)
        for part in _products(b.T, a.T, operand, target, rounding, tree, exact_products, swapped, programs):
            yield part.T
        return
    chosen, bound = _plan(tree, operand, target, rounding, exact_products)
    if rows <= 4 and b.size > _CHUNK and b.strides[1] != b.itemsize and len(programs) == 1:
        # Packed a little at a time: fresh memory by the dozen megabytes costs more than the arithmetic.
        width = max(128, _CHUNK // leaves // 128 * 128)
        whole = np.empty((rows, columns), dtype=chosen.dtype)
        for start in range(0, columns, width):
            part = Draws(draws.key, draws.first + start * draws.column_step, draws.row_step, draws.column_step)
            some = b[:, start : start + width]
            chunk = _products(a, some, operand, target, rounding, tree, exact_products, part, programs)
            whole[:, start : start + width] = next(chunk)
        yield whole
        return
    shape = (rows, columns, leaves)
    job = _Job(chosen.element, shape, tree.depth + 1, rounding, draws)
    left, right = job.pack(a, b)
    flags = _flags(chosen, bound * leaves, target, rounding, left, right, rows)
    for lines in programs:
        out = job.run(left, right, lines, flags, chosen.row, chosen.limit)
        if job.passed:
            job.redo(a, b, lines, careful_scheme(target, rounding, exact_products), out)
        yield out


def compensated_product(
    a: np.ndarray, b: np.ndarray, operand: Format, target: Format, rounding: Rounding, kind: str, draws: Draws
) -> np.ndarray:
    """a @ b by "kahan" or "neumaier" summation in ascending k, every operation rounded to `target`."""
    from fpsim._kernels.sums_rounding import CAREFUL, CLAMP, NATIVE, TRACK, TRACK_SUMS

    (rows, leaves), columns = a.shape, b.shape[1]
    if columns < 32 and rows > columns:
        swapped = Draws(draws.key, draws.first, draws.column_step, draws.row_step)
        return compensated_product(b.T, a.T, operand, target, rounding, kind, swapped).T
    chosen = scheme(operand, target, rounding, False, False)
    job = _Job(chosen.element, (rows, columns, leaves), 1, rounding, draws, kind)
    left, right = job.pack(a, b)
    flags = chosen.flags
    if flags & NATIVE:
        flags = NATIVE  # a product that is exact needs no fused addition
    elif not flags & CAREFUL:
        high, _ = _largest_and_smallest(left)
        highest = high * max(_largest_and_smallest(panels.data)[0] for panels in right)
        leaf = highest * (1 + 2 * target.unit_roundoff) + target.min_normal
        flags |= CLAMP | (TRACK_SUMS if leaf < chosen.limit else TRACK)
    out = job.run(left, right, _NO_LINES, flags, chosen.row, chosen.limit)
    if job.passed:
        job.redo(a, b, _NO_LINES, careful_scheme(target, rounding, False), out)
    return out


def exact_product(
    a: np.ndarray, b: np.ndarray, operand: Format, fmt: Format, rounding: Rounding, terms: list[np.ndarray], draws: Draws
) -> np.ndarray:
    """The exact sum of exact products and `terms` (arrays of the result's shape), rounded once to `fmt`."""
    from fpsim._kernels import exact as kernels

    (rows, leaves), columns = a.shape, b.shape[1]
    finite = bool(np.isfinite(a).all() and np.isfinite(b).all())
    left_source, right_source = (a, b) if finite else (np.where(np.isfinite(x), x, 0) for x in (a, b))
    left = _pack_rows(left_source, np.dtype("f8"), kernels.ROWS)
    right = pack_columns(right_source, np.dtype("f8"), kernels.LANES, rows + kernels.ROWS)[0]
    shifts, bins = _bins(left, right.data, operand, leaves)
    groups, panels = -(-rows // kernels.ROWS), -(-columns // kernels.LANES)
    stride = panels * kernels.LANES
    bin_stride = groups * kernels.ROWS * stride
    sums = np.empty((bins + len(terms), groups * kernels.ROWS, stride))
    function = kernels.make_exact(bins)

    def task(first: int, last: int) -> None:
        function(
            left, right.data, sums.reshape(-1), leaves, panels, right.panel_stride, right.leaf_stride, first, last,
            stride, bin_stride, shifts,
        )  # fmt: skip

    threads.run(task, threads.parts(groups, rows * max(1, leaves) * columns))
    for place, term in enumerate(terms):
        sums[bins + place] = 0
        sums[bins + place, :rows, :columns] = np.where(np.isfinite(term), term, 0)
    high, low = np.empty(bin_stride), np.empty(bin_stride)
    kernels.combine(sums.reshape(bins + len(terms), bin_stride), high, low)
    if rounding is Rounding.DOWN:
        low[(high == 0) & (low == 0)] = -0.0  # an exact zero is -0 under down
    high, low = (x.reshape(-1, stride)[:rows, :columns] for x in (high, low))
    if not finite or not all(np.isfinite(term).all() for term in terms):
        with np.errstate(invalid="ignore"):
            special = a.astype(np.float64) @ b.astype(np.float64)
            for term in terms:
                special = special + term
        high = np.where(np.isfinite(special), high, special)
        low = np.where(np.isfinite(special), low, 0)
    return add_rounded(high, low, fmt, rounding, draws, 0, residual=True)


def _bins(left: np.ndarray, right: np.ndarray, operand: Format, leaves: int) -> tuple[np.ndarray, int]:
    """The constants that split products into bins, from the operands' magnitudes, and how many bins there are."""
    tops, quanta = [], []
    for packed in (left, right):
        high, low = _largest_and_smallest(packed)
        if high == 0:
            return np.zeros(1), 1
        tops.append(int(np.frexp(high)[1]))
        quanta.append(max(int(np.frexp(low)[1]) - 1, operand.emin) - operand.precision + 1)
    width = min(50, 51 - max(1, leaves).bit_length())
    place, last = sum(tops) - width, sum(quanta)
    shifts = []
    while place > last:
        shifts.append(1.5 * 2.0 ** (place + 52))
        place -= width
    return np.array([*shifts, 0.0]), len(shifts) + 1


class _Job:
    """One product on one carrier."""

    def __init__(
        self, element: str, shape: tuple[int, int, int], depth: int, rounding: Rounding, draws: Draws, kind: str = "tree"
    ):
        self.kind = kind
        self.element, self.dtype = element, np.dtype(element)
        self.rows, self.columns, self.leaves = shape
        self.depth, self.rounding, self.draws = depth, rounding, draws
        self.tile_rows, self.vectors = _tile(element, self.rows)
        self.width = self.vectors * _LANES[element]
        self.groups = -(-self.rows // self.tile_rows)
        self.passed: list[tuple[int, int, int, int]] = []  # row and column ranges

    def pack(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, list[Panels]]:
        return _pack_rows(a, self.dtype, self.tile_rows), pack_columns(b, self.dtype, self.width, self.rows)

    def _kernel(self, flags: int) -> Any:
        shape = (self.element, self.tile_rows, self.vectors, self.rounding.code, flags)
        if self.kind == "tree":
            from fpsim._kernels.products import make_product

            return make_product(*shape)
        from fpsim._kernels.compensated import make_compensated

        return make_compensated(*shape, int(self.kind == "neumaier"))

    def run(
        self, left: np.ndarray, right: list[Panels], lines: np.ndarray, flags: int, row: np.ndarray, limit: float
    ) -> np.ndarray:
        """The product; afterwards `passed` lists the tiles whose magnitudes reached the limit."""
        from fpsim._kernels import products as kernels

        function = self._kernel(flags)
        self.passed = []
        padded = sum(-(-panels.columns // self.width) * self.width for panels in right)
        out = np.empty((self.groups * self.tile_rows, padded), dtype=self.dtype)
        hashes: np.ndarray = _NO_HASHES
        if self.rounding is Rounding.STOCHASTIC:
            hashes = np.empty(out.shape, dtype=np.uint32)
            key = np.uint64(self.draws.key)
            kernels.fill_hashes(hashes, key, self.draws.first, self.draws.row_step, self.draws.column_step)
        size = self.tile_rows * self.width
        flat, flat_hashes = out.reshape(-1), hashes.reshape(-1)
        limit_value = self.dtype.type(limit)
        for panels in right:
            count = -(-panels.columns // self.width)
            passed = np.zeros((count, self.groups), dtype=np.uint8)

            def task(
                first: int, last: int, panels: Panels = panels, count: int = count, passed: np.ndarray = passed
            ) -> None:
                stack = np.empty(self.depth * size, dtype=self.dtype)
                function(
                    left, panels.data, flat[panels.first_column :], self.leaves, count, panels.panel_stride,
                    panels.leaf_stride, first, last, padded, lines, stack, row,
                    flat_hashes[panels.first_column :] if flat_hashes.size > 1 else flat_hashes, limit_value, passed,
                )  # fmt: skip

            work = self.groups * self.tile_rows * max(1, self.leaves) * count * self.width
            threads.run(task, threads.parts(self.groups, work))
            if not passed.any():
                continue
            for panel, group in np.argwhere(passed).tolist():
                column = panels.first_column + panel * self.width
                self.passed.append((group * self.tile_rows, column, self.tile_rows, self.width))
        return out[: self.rows, : self.columns]

    def redo(self, a: np.ndarray, b: np.ndarray, lines: np.ndarray, careful: Scheme, out: np.ndarray) -> None:
        """Compute the tiles that passed the limit again, column range by column range, and write them to `out`."""
        by_columns: dict[tuple[int, int], list[int]] = {}
        for row, column, height, width in self.passed:
            by_columns.setdefault((column, width), []).extend(range(row, min(row + height, self.rows)))
        for (column, width), rows in by_columns.items():
            if self.rounding is Rounding.STOCHASTIC:
                rows = list(range(self.rows))  # the numbers of the elements must run on from row to row
            columns = b[:, column : column + width]
            key, first = self.draws.key, self.draws.first + column * self.draws.column_step
            draws = Draws(key, first, self.draws.row_step, self.draws.column_step)
            shape = (len(rows), columns.shape[1], self.leaves)
            part = _Job("f8", shape, self.depth, self.rounding, draws, self.kind)
            packed = part.pack(a[rows], columns)
            out[rows, column : column + width] = part.run(*packed, lines, careful.flags, careful.row, careful.limit)


def add_rounded(
    x: np.ndarray, y: np.ndarray, target: Format, rounding: Rounding, draws: Draws, node: int, residual: bool = False
) -> np.ndarray:
    """rounded(x + y) of two matrices, as node number `node`: values of `target`, or any float64 with `residual`."""
    from fpsim._kernels import products as kernels

    rows, columns = x.shape
    if is_like(target, FP32) and rounding is Rounding.NEAREST_EVEN and not residual:
        with np.errstate(all="ignore"):
            return np.add(x, y, dtype=np.float32, casting="same_kind")  # both are float32 values, added as IEEE says
    careful = careful_scheme(target, rounding, residual)
    padded = -(-max(1, columns) // 8) * 8
    out = np.zeros((rows, padded))
    right = np.zeros((rows, padded))
    out[:, :columns], right[:, :columns] = x, y
    hashes = np.zeros((rows, padded), dtype=np.uint32)
    if rounding is Rounding.STOCHASTIC:
        kernels.fill_hashes(hashes, np.uint64(draws.key), draws.first, draws.row_step, draws.column_step)
    function = kernels.make_add(rounding.code, careful.flags)
    function(out.reshape(-1), right.reshape(-1), careful.row, hashes.reshape(-1), node)
    return out[:, :columns]
