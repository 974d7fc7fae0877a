"""A sum of products from operands to result: the accumulated sum, the addends after it, the rounding to the result's format."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fpsim.backend.subnormals import refuse_flush_to_zero
from fpsim.numbers.arguments import holds
from fpsim.numbers.formats import FP64, Format
from fpsim.numbers.operands import as_read
from fpsim.numbers.rounding import Rounding, round_into
from fpsim.numbers.system import NumberSystem
from fpsim.sums.additions import add_rounded, round_rows
from fpsim.sums.exact import watched_product
from fpsim.sums.observers.observer import SumObserver
from fpsim.sums.routes import accumulate
from fpsim.sums.splitting import split_factors
from fpsim.sums.task import Draws, Sum

# Keys of roundings outside the tree, so that their draws are independent of its steps'.
FINAL, _TERM = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
_EPILOGUE = 2**30  # the number of the first addition after the tree


def product_into(
    task: Sum,
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    draws: Draws | None = None,
    addends: Sequence[np.ndarray] = (),
    observer: SumObserver | None = None,
    before_rounding: Callable[[np.ndarray], None] | None = None,
) -> None:
    """out = a @ b + addends, as `task` says: 2-D float32 or float64 arrays of values of its formats, any strides.

    The addends broadcast to out's shape. Those that are no terms of the sum itself (`Kind.own_addends`) are added to it one
    after the other, in its format, before the one rounding to the result's. Draws left out number the elements of `out` in
    row-major order, with key 0.

    `observer` is told what the roundings do. `before_rounding` is called with the accumulated matrix before its last
    rounding, where that is to another format; an exact sum (of factors themselves, not of parts) is given as the float64
    number that it is, rounded to odd.
    Raises ValueError for formats too wide to compute in and in flush-to-zero mode; operands are not checked.
    """
    refuse_flush_to_zero()
    task.require_arithmetic()
    if out.size == 0:
        return
    draws = Draws(row_step=out.shape[1]) if draws is None else draws
    a, b = as_read(a, task.left.enclosing), as_read(b, task.right.enclosing)
    terms: Sequence[np.ndarray] = ()
    if addends:
        inside = task.accumulator.kind.own_addends
        read = [as_read(term, task.operand) for term in addends]
        terms, addends = [np.broadcast_to(np.asarray(term), out.shape) for term in read[:inside]], read[inside:]
    if task.split is not None:
        result = _accumulated_parts(task, a, b, draws, terms, observer)
    elif task.accumulator.held is None and before_rounding is not None:
        result = watched_product(task, a, b, draws, before_rounding, addends=terms)
    else:
        result = _accumulated(task, a, b, draws, terms, observer)
    finish_into(task, result, out, draws, addends, observer, before_rounding)


def _accumulated(
    task: Sum, a: np.ndarray, b: np.ndarray, draws: Draws, addends: Sequence[np.ndarray], observer: SumObserver | None = None
) -> np.ndarray:
    if observer is None:
        return accumulate(task, a, b, draws, addends=addends)
    return observer.product(task, a, b, draws)


def _accumulated_parts(
    task: Sum, a: np.ndarray, b: np.ndarray, draws: Draws, addends: Sequence[np.ndarray], observer: SumObserver | None
) -> np.ndarray:
    """The sum of the products of parts; all but the last pair's count as +0 where they alone give NaN, as infinities' do."""
    factors = split_factors(task, a, b)
    result = _accumulated(task.of_parts, *factors.all, draws, addends, observer)
    if np.isnan(result).any():
        small = _accumulated(task.of_parts.rounded_to(FP64), *factors.small, draws, ())
        large = _accumulated(task.of_parts, *factors.large, draws, addends)
        result = np.where(np.isnan(small), large, result)
    return result


def finish_into(
    task: Sum,
    result: np.ndarray,
    out: np.ndarray,
    draws: Draws,
    addends: Sequence[np.ndarray] = (),
    observer: SumObserver | None = None,
    before_rounding: Callable[[np.ndarray], None] | None = None,
) -> None:
    """out = accumulated sums + the addends that are no terms of them, rounded to the result's format, as `product_into`.

    `result`, which may be `out`, is of no further use.
    """
    if task.accumulator.held is None:  # what is exact has been rounded to the result's system
        out[...] = result
        return
    held, rounding = task.held, task.rounding
    for node, addend in enumerate(addends, _EPILOGUE):
        term = _term(addend, out.shape, held, rounding, draws, observer)
        if observer is None:
            result = add_rounded(result, term, held, rounding, draws, node, out=result)
        else:
            result = observer.addition(result, term, held, rounding, draws, node)
    if held is not task.result and held != task.result:
        result = np.ascontiguousarray(result)
        if before_rounding is not None:
            before_rounding(result)
        _round(result, task.result, rounding, draws.with_key(draws.key ^ FINAL), observer)
    if result is not out:
        out[...] = result


def _term(
    term: np.ndarray, shape: tuple[int, ...], fmt: Format, rounding: Rounding, draws: Draws, observer: SumObserver | None
) -> np.ndarray:
    """What is added after a sum, rounded to the accumulator's format: an array that broadcasts to the result's shape."""
    is_told = observer is not None and observer.is_whole
    each = is_told or rounding is Rounding.STOCHASTIC  # element by element of the result
    narrow = holds(np.dtype(np.float32), fmt)
    dtype = np.float32 if narrow and term.dtype == np.float32 else np.float64
    rounded = np.array(np.broadcast_to(term, shape) if each else term, dtype=dtype, order="C")
    if each:
        _round(rounded, fmt, rounding, draws.with_key(draws.key ^ _TERM), observer)
    else:
        round_into(rounded, rounded, fmt, rounding)
    return rounded.astype(np.float32, copy=False) if narrow else rounded


def _round(x: np.ndarray, system: NumberSystem, rounding: Rounding, draws: Draws, observer: SumObserver | None) -> None:
    """Round a contiguous matrix in place."""
    if observer is None or not observer.is_whole:
        round_rows(x, system, rounding, draws)
        return
    for i, rows in enumerate(x if rounding is Rounding.STOCHASTIC else [x]):
        before, row_draws = rows.copy(), draws.at(i)
        round_into(rows, rows, system, rounding, row_draws.key, row_draws.first)
        observer.rounded(before, rows, system, rounding, row_draws.key, row_draws.first)
