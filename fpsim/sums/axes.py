"""Sums along axes of arrays: the choice of kernel and of how an array is laid out for it. Nothing is checked here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from fpsim.accumulation.accumulator import Accumulator
from fpsim.accumulation.kinds import PARTS, TREE
from fpsim.backend import numba as kernels, threads
from fpsim.numbers.computing import contains, float32_adds, float64_adds, is_float32
from fpsim.numbers.formats import Format
from fpsim.numbers.operands import as_read
from fpsim.numbers.rounding import Rounding, rounding_constants
from fpsim.numbers.system import NumberSystem
from fpsim.sums.columns import Columns, as_columns
from fpsim.sums.observers.observer import SumObserver
from fpsim.sums.product import FINAL, product_into
from fpsim.sums.programs import program
from fpsim.sums.routes import accumulate
from fpsim.sums.task import Draws, Sum

LANES = 128  # rows, or as many as fit, that are added side by side
_GROUP_BYTES = 2 << 20


@dataclass(frozen=True)
class Fast:
    """What the kernels of `backend/numba/reductions.py` need: carrier, rows of constants, whether leaves are rounded."""

    dtype: np.dtype
    chain: np.ndarray
    add: np.ndarray
    round_leaves: bool


def _carries(dtype: np.dtype, fmt: Format) -> bool:
    """Whether the carrier's own addition and one rounding to nearest even add two values of the format right."""
    if not fmt.has_negative_zero or fmt.flush is not None or fmt.flush_inputs:
        return False
    return float64_adds(fmt) if dtype == np.float64 else is_float32(fmt) or float32_adds(fmt)


def fast_plan(dtype: np.dtype, task: Sum) -> Fast | None:
    """The fast kernels' plan, or None where only matrix products do."""
    if dtype not in task.along_axes:
        task.along_axes[dtype] = _plan(dtype, task)
    return task.along_axes[dtype]


def _plan(dtype: np.dtype, task: Sum) -> Fast | None:
    accumulator, fmt = task.accumulator, task.operand
    if task.rounding is not Rounding.NEAREST_EVEN or accumulator.kind not in (TREE, PARTS) or fmt.flush_inputs:
        return None
    if accumulator.rounds_parts:
        return None
    if accumulator.order.name == "given" and not accumulator.order.parameters[0].is_binary:
        return None
    narrow, wide = task.target, task.held
    round_leaves = not contains(narrow, fmt)
    if round_leaves and task.exact_products:
        return None  # leaves are exact, and wider than the accumulator
    for carrier in (dtype, np.dtype(np.float64)):
        rows = [rounding_constants(target, task.rounding, carrier) for target in (narrow, wide)]
        if rows[0] is not None and rows[1] is not None and _carries(carrier, narrow) and _carries(carrier, wide):
            return Fast(carrier, rows[0], rows[1], round_leaves)
    return None


def sum_axes(
    task: Sum, x: np.ndarray, axes: tuple[int, ...], key: int = 0, observer: SumObserver | None = None,
    before_rounding: Callable[[np.ndarray], None] | None = None,
) -> np.ndarray:  # fmt: skip
    """The sum of x over distinct axes >= 0, terms in row-major order of the axes as listed, rounded once to the result.

    A float32 or float64 array of values of the task's operand format, any strides; a new array of x's dtype over the axes
    kept. `observer` is told what the roundings do, and `before_rounding` called as `product_into` calls it.
    """
    task, x = task.of_terms, as_read(x, task.operand)
    kept, shape = axes_kept(x, axes)
    total = _total(task, x, kept, axes, observer)
    if total is None:
        lines, ones = as_product(x, kept, axes)
        out = np.empty((len(lines), 1), dtype=x.dtype)
        product_into(task, lines, ones, out, Draws(key, 0, 1, 1), (), observer, before_rounding)
        return out.reshape(shape)
    if before_rounding is not None and task.held != task.result:
        before_rounding(total)
    task.result.round_into(total, total, task.rounding)
    return total.astype(x.dtype, copy=False).reshape(shape)


def mean_axes(
    task: Sum, x: np.ndarray, axes: tuple[int, ...], key: int = 0, observer: SumObserver | None = None,
    before_rounding: Callable[[np.ndarray], None] | None = None,
) -> np.ndarray:  # fmt: skip
    """As `sum_axes`, but the accumulator is divided by the number of terms, rounded in its format, then to the result's.

    An exact accumulator and the library's own have no format: their sum is rounded to the result's, and so is the quotient.
    No terms give NaN. `before_rounding` is called with the quotients before they are rounded to the result.
    """
    task, x = task.of_terms, as_read(x, task.operand)
    kept, shape = axes_kept(x, axes)
    count = prod(x.shape[axis] for axis in axes)
    held: NumberSystem = task.held
    if task.accumulator.kind.stands_alone:
        total, held = sum_axes(task, x, axes, key), task.result
    elif (found := _total(task, x, kept, axes, observer)) is not None:
        total = found
    else:
        lines, ones = as_product(x, kept, axes)
        draws = Draws(key, 0, 1, 1)
        total = (accumulate if observer is None else observer.product)(task, lines, ones, draws)
    quotient = _divided(total.astype(np.float64).reshape(shape), count, held.enclosing)
    for target, step_key in ((held, key ^ (FINAL >> 1)), (task.result, key ^ FINAL)):
        told = observer if observer is not None and observer.is_whole else None
        before = quotient if told is None else quotient.copy()
        if before_rounding is not None and target == task.result:
            before_rounding(quotient)
            before_rounding = None
        target.round_into(quotient, quotient, task.rounding, step_key)
        if told is not None:
            told.rounded(before, quotient, target, task.rounding, step_key, 0)
    return quotient.astype(x.dtype, copy=False)


def as_product(x: np.ndarray, kept: tuple[int, ...], axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The terms of each sum in a row, and as many ones in a column."""
    terms = prod(x.shape[axis] for axis in axes)
    lines = x.transpose(kept + axes).reshape(prod(x.shape[axis] for axis in kept), terms)
    return lines, np.ones((terms, 1), dtype=x.dtype)


def axes_kept(x: np.ndarray, axes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    kept = tuple(axis for axis in range(x.ndim) if axis not in axes)
    return kept, tuple(x.shape[axis] for axis in kept)


def _divided(total: np.ndarray, count: int, held: Format) -> np.ndarray:
    """total / count, rounded to odd in float64, so that one more rounding to p <= 24 bits is right in every mode.

    For fp64 itself the quotient to nearest even.
    """
    with np.errstate(all="ignore"):
        divisor = np.float64(count)
        quotient = np.atleast_1d(total / divisor)
        if held.precision > 24:
            return quotient.reshape(total.shape)
        product = quotient * divisor
        residual = (total - product) - _product_error(quotient, divisor, product)  # exact: total - quotient * count
        bits = quotient.view(np.int64)
        inexact = np.isfinite(residual) & (residual != 0) & (bits & 1 == 0)
        larger = (residual > 0) == (quotient > 0)
        return np.where(inexact, bits + np.where(larger, 1, -1), bits).view(np.float64).reshape(total.shape)


def _product_error(left: np.ndarray, right: np.float64, product: np.ndarray) -> np.ndarray:
    """left * right - product, exact (Dekker 1971, with Veltkamp's splitting)."""

    def parts(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = value * 134217729.0  # 2^27 + 1
        high = scaled - (scaled - value)
        return high, value - high

    (left_high, left_low), (right_high, right_low) = parts(left), parts(np.asarray(right))
    return left_low * right_low - (((product - left_high * right_high) - left_low * right_high) - left_high * right_low)


def _total(
    task: Sum, x: np.ndarray, kept: tuple[int, ...], axes: tuple[int, ...], observer: SumObserver | None
) -> np.ndarray | None:
    """The accumulated sums, flat, before they are rounded to the result; None where products alone make them."""
    task.require_arithmetic()
    fast = fast_plan(x.dtype, task)
    if fast is None or observer is None:
        return None if fast is None else _run(x.astype(fast.dtype, copy=False), kept, axes, task.accumulator, fast)
    is_chain = task.accumulator.kind is TREE and task.accumulator.order.name == "sequential"
    if not is_chain or fast.round_leaves or fast.dtype != x.dtype or task.target.saturate:
        return None
    blocks = as_columns(x, kept, axes, prod(x.shape[axis] for axis in axes))
    return None if blocks is None else observer.columns(Columns(blocks, fast.chain))


def _run(
    x: np.ndarray, kept: tuple[int, ...], axes: tuple[int, ...], accumulator: Accumulator, fast: Fast
) -> np.ndarray:
    """The sums as a flat array, by columns where memory runs along an axis that is kept, else by rows."""
    terms, rows = prod(x.shape[axis] for axis in axes), prod(x.shape[axis] for axis in kept)
    tree = accumulator.order(terms)
    how = (program(tree), tree.depth + 1, fast.chain, fast.add, fast.round_leaves)
    out = np.empty(rows, dtype=x.dtype)
    blocks = as_columns(x, kept, axes, terms)
    if blocks is not None:
        items = blocks.shape[0] * -(-blocks.shape[2] // kernels.reductions.BLOCK)
        target = out.reshape(blocks.shape[0], blocks.shape[2])
        split = threads.parts(items, x.size)
        threads.run(lambda first, last: kernels.reductions.sum_columns(blocks, target, first, last, *how), split)
        return out
    lines = x.transpose(kept + axes).reshape(rows, terms)
    if lines.strides[1] != x.itemsize or lines.strides[0] < 0 or lines.strides[0] % x.itemsize:
        lines = np.ascontiguousarray(lines)
    stride = lines.strides[0] // x.itemsize
    if lines.flags.c_contiguous:
        line = lines.reshape(-1)
    else:
        line = np.lib.stride_tricks.as_strided(lines, (max(0, rows - 1) * stride + terms,), (x.itemsize,))
    side = 64 // x.itemsize
    lanes = min(LANES, _GROUP_BYTES // (max(1, terms) * x.itemsize), rows) // side * side
    lanes = max(side, lanes)

    def task(first: int, last: int) -> None:
        kernels.reductions.sum_rows(line, stride, rows, terms, out, first, last, lanes, *how)

    threads.run(task, threads.parts(-(-rows // lanes), x.size))
    return out
