"""Products of matrices with each kind of accumulator: which kernel, with which flags, over which parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from fpsim.accumulation.accumulator import Accumulator
from fpsim.accumulation.orders import sequential
from fpsim.accumulation.trees import Tree
from fpsim.backend import threads
from fpsim.numbers.formats import FP16, FP32, FP64, Format
from fpsim.numbers.rounding import Rounding
from fpsim.sums.exact_integers import exact_pairs
from fpsim.sums.plan import Plan, careful_scheme, is_like, plan, program, require_arithmetic, scheme
from fpsim.sums.rows import can_read, row_chain
from fpsim.sums.tiles import (
    Draws,
    Job,
    add_rounded,
    extents_of_products,
    largest_and_smallest,
    pack_columns,
    pack_rows,
    without_nan,
)
from fpsim.sums.wide_nodes import node_product

_NO_LINES = np.zeros((1, 5), dtype=np.int64)
_CHUNK = 2**18  # elements


def choose_flags(known: Plan, terms: float, rows: int, extents: Callable[[], tuple[float, float]]) -> int:
    """The scheme's flags and those that `extents_of_products` of the operands call for, in sums of so many terms."""
    flags, limit = known.scheme.flags, known.scheme.limit
    if limit == inf:
        return flags  # native or careful: nothing to watch
    if rows <= 4:
        return flags | known.clamp | known.watch  # looking through the matrix would cost as much as it saves
    highs, lows = extents()
    target = known.target
    # Each set of flags is a kernel to compile: the fullest choice is for the commonest case alone.
    if not (known.is_usual and lows >= target.min_normal):
        flags |= known.clamp
    leaf = highs * (1 + 2 * target.unit_roundoff) + target.min_normal
    if not known.growth * terms * leaf < limit:
        flags |= known.clamp | (known.watch_sums if known.is_usual and leaf < limit else known.watch)
    return flags


@dataclass(frozen=True)
class _Prepared:
    """What a product needs to know of its formats, order and number of leaves, and the objects that it was asked for."""

    asked: tuple[Any, ...]
    tree: Tree
    programs: list[np.ndarray]
    plan: Plan


# By the identities of the objects, which the entries keep alive: hashing formats and trees takes longer than small products.
_prepared: dict[tuple[int, ...], _Prepared] = {}
_MOST_PREPARED = 512


def prepare(operand: Format, accumulator: Accumulator, rounding: Rounding, leaves: int) -> _Prepared:
    """The entry for a tree of additions; ValueError for an accumulator's format that cannot compute."""
    key = (id(operand), id(accumulator), id(rounding), leaves)
    found = _prepared.get(key)
    if found is None:
        require_arithmetic(accumulator.format, rounding, "accumulate")
        tree = accumulator.order(leaves)
        chosen = plan(tree, operand, accumulator.format, rounding, accumulator.products != "rounded")
        programs = [program(tree)] if tree.is_binary else []
        found = _Prepared((operand, accumulator, rounding), tree, programs, chosen)
        if len(_prepared) >= _MOST_PREPARED:
            _prepared.clear()
        _prepared[key] = found
    return found


def tree_product(
    a: np.ndarray, b: np.ndarray, operand: Format, accumulator: Accumulator, rounding: Rounding, draws: Draws
) -> np.ndarray:
    """a @ b along a tree, every addition rounded to its format: a new array of float32 or float64."""
    known = prepare(operand, accumulator, rounding, a.shape[1])
    exact_products = accumulator.products != "rounded"
    if not known.tree.is_binary:
        return node_product(a, b, accumulator.format, rounding, known.tree, exact_products, draws)
    how = (operand, accumulator.format, rounding, known.tree, exact_products, draws, known.programs, known.plan)
    return next(_products(a, b, *how))


def promoted_programs(leaves: int, size: int) -> list[np.ndarray]:
    """A program for each block of `size` leaves, a chain from +0; the number after its last node is that of its sum's."""
    from fpsim.backend.numba.products import CHAIN, PUSH_ZERO

    programs, node = [], 0
    for start in range(0, leaves, size):
        count = min(size, leaves - start)
        programs.append(np.array([(PUSH_ZERO, 0, 1, 1, 0), (CHAIN, start, count, 1, node)], dtype=np.int64))
        node += count + 1
    return programs


def promoted_product(
    a: np.ndarray, b: np.ndarray, operand: Format, narrow: Format, wide: Format, rounding: Rounding, size: int,
    exact_products: bool, draws: Draws,
) -> np.ndarray:  # fmt: skip
    """Blocks of `size` terms, each a chain from +0 in `narrow`, their sums chained in `wide` from +0."""
    leaves = a.shape[1]
    programs = promoted_programs(leaves, size)
    dtype = np.float32 if is_like(wide, FP32) else np.float64
    total: np.ndarray = np.zeros((a.shape[0], b.shape[1]), dtype=dtype)
    blocks = _products(a, b, operand, narrow, rounding, sequential(leaves), exact_products, draws, programs)
    for lines, block in zip(programs, blocks, strict=True):
        total = add_rounded(total, block, wide, rounding, draws, int(lines[1, 2] + lines[1, 4]))
    return total


def _products(
    a: np.ndarray, b: np.ndarray, operand: Format, target: Format, rounding: Rounding, tree: Tree, exact_products: bool,
    draws: Draws, programs: list[np.ndarray], known: Plan | None = None,
) -> Iterator[np.ndarray]:  # fmt: skip
    """One array for each program; `tree` bounds their partial sums and their stacks."""
    (rows, leaves), columns = a.shape, b.shape[1]
    if columns < 32 and rows > columns:
        swapped = Draws(draws.key, draws.first, draws.column_step, draws.row_step)
        for part in _products(b.T, a.T, operand, target, rounding, tree, exact_products, swapped, programs, known):
            yield part.T
        return
    known = known or plan(tree, operand, target, rounding, exact_products)
    chosen = known.scheme
    one_chain = tree.is_one_chain and len(programs) == 1
    if rows == 1 and b.size > _CHUNK // 16 and one_chain and can_read(a, b, rounding, chosen):
        yield _row_product(a, b, rounding, tree, draws, programs, known)
        return
    if rows <= 4 and columns > 128 and b.size > _CHUNK and b.strides[1] != b.itemsize and len(programs) == 1:
        # Packed a little at a time: fresh memory by the dozen megabytes costs more than the arithmetic.
        width = max(128, _CHUNK // leaves // 128 * 128)
        whole = np.empty((rows, columns), dtype=chosen.dtype)
        for start in range(0, columns, width):
            own = Draws(draws.key, draws.first + start * draws.column_step, draws.row_step, draws.column_step)
            some = b[:, start : start + width]
            chunk = _products(a, some, operand, target, rounding, tree, exact_products, own, programs)
            whole[:, start : start + width] = next(chunk)
        yield whole
        return
    shape = (rows, columns, leaves)
    job = Job(chosen.element, shape, tree.depth + 1, rounding, draws)
    left, right = job.pack(a, b)
    flags = choose_flags(known, leaves, rows, lambda: extents_of_products(left, [panels.data for panels in right]))
    watched = flags & (known.watch | known.watch_sums) and rows > 4 and rounding is not Rounding.STOCHASTIC
    special = bool(watched) and not (np.isfinite(a).all() and np.isfinite(b).all())
    apart = without_nan(a, b) if special else None
    if apart is not None:
        given, others = apart
        parts = _products(a[given], b[:, others], operand, target, rounding, tree, exact_products, draws, programs, known)
        for _ in programs:
            yield _among_nan(apart, chosen.dtype, lambda: next(parts))
        return
    decided = None
    if special and len(programs) == 1 and target.has_infinity and not target.saturate:
        # Whatever the order, infinite products decide the sums that have any, unless something else overflows before.
        infinite = np.isinf(a), np.isinf(b)
        decided = _sums_of_signs(a, b, *infinite)
        left, right = job.pack(*(np.where(where, 0, x) for x, where in zip((a, b), infinite, strict=True)))
        flags = choose_flags(known, leaves, rows, lambda: extents_of_products(left, [panels.data for panels in right]))
    for lines in programs:
        out = job.run(left, right, lines, flags, chosen.row, chosen.limit)
        if decided is not None:
            np.copyto(out, decided, where=~np.isfinite(decided))
        if job.passed:
            job.redo(a, b, lines, known.overflow, out)
        yield out


def _sums_of_signs(a: np.ndarray, b: np.ndarray, *infinite: np.ndarray) -> np.ndarray:
    """a @ b where a leaf is infinite or NaN, by IEEE 754-2019, section 6.1, and elsewhere something finite."""
    signs = [np.where(where, x, np.sign(x)).astype(np.float32) for x, where in zip((a, b), infinite, strict=True)]
    tree, nearest = sequential(a.shape[1]), Rounding.NEAREST_EVEN
    return next(_products(signs[0], signs[1], FP16, FP32, nearest, tree, False, Draws(), [program(tree)]))


def _among_nan(apart: tuple[np.ndarray, np.ndarray], dtype: np.dtype, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """A product of which `without_nan` says where it is not NaN, and `compute` what it is there."""
    rows, columns = apart
    whole = np.full((rows.size, columns.size), np.nan, dtype=dtype)
    if rows.any() and columns.any():
        whole[np.ix_(rows, columns)] = compute()
    return whole


def _row_product(
    a: np.ndarray, b: np.ndarray, rounding: Rounding, tree: Tree, draws: Draws, programs: list[np.ndarray], known: Plan
) -> np.ndarray:
    """One row along one chain, with the matrix read as it lies."""
    chosen = known.scheme
    flags = choose_flags(known, inf, 1, lambda: (inf, 0.0))
    out, passed = row_chain(a, b, chosen, flags, rounding)
    if passed:
        job = Job(chosen.element, (1, b.shape[1], b.shape[0]), tree.depth + 1, rounding, draws)
        job.passed = passed
        job.redo(a, b, programs[0], known.overflow, out)
    return out


def compensated_product(
    a: np.ndarray, b: np.ndarray, operand: Format, target: Format, rounding: Rounding, kind: str, draws: Draws
) -> np.ndarray:
    """a @ b by "kahan" or "neumaier" summation in ascending k, every operation rounded to `target`."""
    from fpsim.backend.numba.sums_rounding import CAREFUL, CLAMP, NATIVE, TRACK, TRACK_SUMS

    (rows, leaves), columns = a.shape, b.shape[1]
    if columns < 32 and rows > columns:
        swapped = Draws(draws.key, draws.first, draws.column_step, draws.row_step)
        return compensated_product(b.T, a.T, operand, target, rounding, kind, swapped).T
    chosen = scheme(operand, target, rounding, False, False)
    job = Job(chosen.element, (rows, columns, leaves), 1, rounding, draws, kind)
    left, right = job.pack(a, b)
    flags, highest = chosen.flags, 0.0
    if flags & NATIVE:
        flags = NATIVE  # a product that is exact needs no fused addition
    elif not flags & CAREFUL:
        high, _ = largest_and_smallest(left)
        highest = high * max(largest_and_smallest(panels.data)[0] for panels in right)
        leaf = highest * (1 + 2 * target.unit_roundoff) + target.min_normal
        flags |= CLAMP | (TRACK_SUMS if leaf < chosen.limit else TRACK)
    apart = None if highest < inf or rounding is Rounding.STOCHASTIC else without_nan(a, b)
    if apart is not None:
        rest = (a[apart[0]], b[:, apart[1]], operand, target, rounding, kind, draws)
        return _among_nan(apart, chosen.dtype, lambda: compensated_product(*rest))
    out = job.run(left, right, _NO_LINES, flags, chosen.row, chosen.limit)
    if job.passed:
        job.redo(a, b, _NO_LINES, careful_scheme(target, rounding, False), out)
    return out


def exact_product(
    a: np.ndarray, b: np.ndarray, operand: Format, fmt: Format, rounding: Rounding, terms: list[np.ndarray], draws: Draws
) -> np.ndarray:
    """The exact sum of exact products and `terms` (arrays of the result's shape), rounded once to `fmt`."""
    numbers = [a, b, *terms]
    finite = all(bool(np.isfinite(x).all()) for x in numbers)
    left, right, *added = numbers if finite else [np.where(np.isfinite(x), x, 0) for x in numbers]
    found = _binned(left, right, operand, added) if _multiplies_exactly(right, operand) else None
    high, low = exact_pairs(left, right, added, is_like(fmt, FP64)) if found is None else found
    if rounding is Rounding.DOWN and (a.shape[1] or terms):
        low[(high == 0) & (low == 0)] = -0.0  # an exact zero is -0 under down
    if not finite:
        signs = [np.where(np.isfinite(x), np.sign(x), x).astype(np.float64) for x in numbers]  # nothing overflows
        with np.errstate(invalid="ignore"):
            special = sum(signs[2:], signs[0] @ signs[1])
        high = np.where(np.isfinite(special), high, special)
        low = np.where(np.isfinite(special), low, 0)
    return add_rounded(high, low, fmt, rounding, draws, 0, residual=True)


def _multiplies_exactly(b: np.ndarray, operand: Format) -> bool:
    """Whether float64 holds the significands of all products: of powers of two, as sums of terms have them, in fp64 too."""
    return operand.precision <= 24 or bool(np.isin(np.abs(np.frexp(b)[0]), (0.0, 0.5)).all())


def _binned(
    a: np.ndarray, b: np.ndarray, operand: Format, terms: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """The exact sums of finite numbers as high + low, products and sums being exact in float64; None where they are not."""
    from fpsim.backend.numba import exact as kernels

    (rows, leaves), columns = a.shape, b.shape[1]
    left = pack_rows(a, np.dtype("f8"), kernels.ROWS)
    right = pack_columns(b, np.dtype("f8"), kernels.LANES, rows + kernels.ROWS)[0]
    plan = _bins(left, right.data, operand, leaves)
    if plan is None:
        return None
    shifts, bins = plan
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
        sums[bins + place, :rows, :columns] = term
    high, low = np.empty(bin_stride), np.empty(bin_stride)
    kernels.combine(sums.reshape(bins + len(terms), bin_stride), high, low)
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
