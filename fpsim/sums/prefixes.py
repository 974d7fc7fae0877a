"""Prefix sums along an axis of an array: the states of sequential chains. Nothing is checked here."""

from __future__ import annotations

from math import prod

import numpy as np

from fpsim.backend import numba as kernels, threads
from fpsim.numbers.computing import contains
from fpsim.numbers.formats import Format
from fpsim.numbers.operands import as_read
from fpsim.numbers.rounding import round_into, rounding_constants
from fpsim.sums.additions import add_rounded
from fpsim.sums.axes import LANES, Fast, fast_plan
from fpsim.sums.columns import LEAST_COLUMNS
from fpsim.sums.product import FINAL
from fpsim.sums.task import Draws, Sum


def prefix_axis(task: Sum, x: np.ndarray, axis: int, key: int = 0) -> np.ndarray:
    """Every prefix of the sequential chain along one axis >= 0, each rounded once to the result's format.

    Stochastic draws of the chain are those of its line, numbered in row-major order of the other axes.
    """
    task, x = task.of_terms, as_read(x, task.operand)
    task.require_arithmetic()
    target, rounding = task.result, task.rounding
    fast = fast_plan(x.dtype, task)
    is_plain = isinstance(target, Format) and target.has_negative_zero and target.flush is None
    final = rounding_constants(target, rounding, fast.dtype) if fast is not None and isinstance(target, Format) else None
    columns = prod(x.shape[axis + 1 :])
    if fast is None or final is None or not is_plain:
        return _prefix_by_steps(task, x, axis, key)
    if columns == 1 and axis and x.size:
        return _prefix_rows(np.ascontiguousarray(x, dtype=fast.dtype), fast, final).astype(x.dtype, copy=False)
    if columns >= LEAST_COLUMNS and x.flags.c_contiguous:
        source = x.reshape(-1 if x.size else prod(x.shape[:axis]), x.shape[axis], columns)
    else:
        source = np.ascontiguousarray(np.moveaxis(x, axis, 0)).reshape(1, x.shape[axis], -1 if x.size else 0)
    source = source.astype(fast.dtype, copy=False)
    out = np.empty_like(source)
    rows = (fast.chain, final, fast.round_leaves)
    items = source.shape[0] * -(-source.shape[2] // kernels.reductions.BLOCK)
    split = threads.parts(items, x.size)
    threads.run(lambda first, last: kernels.reductions.prefix_sums(source, out, first, last, *rows), split)
    moved = np.moveaxis(x, axis, 0).shape
    result = out.reshape(x.shape) if source.shape[0] != 1 or axis == 0 else np.moveaxis(out.reshape(moved), 0, axis)
    return result.astype(x.dtype, copy=False)


def _prefix_rows(x: np.ndarray, fast: Fast, final: np.ndarray) -> np.ndarray:
    """The prefix sums along the last axis of an array in C order."""
    out, terms = np.empty_like(x), x.shape[-1]
    rows = x.size // terms
    how = (LANES, fast.chain, final, fast.round_leaves)

    def task(first: int, last: int) -> None:
        kernels.reductions.prefix_rows(x.reshape(-1), terms, rows, out.reshape(-1), first, last, *how)

    threads.run(task, threads.parts(-(-rows // LANES), x.size))
    return out


def _prefix_by_steps(task: Sum, x: np.ndarray, axis: int, key: int) -> np.ndarray:
    """A step at a time over all lines: right for every mode and format."""
    moved = np.moveaxis(x, axis, 0)
    terms = np.ascontiguousarray(moved, dtype=np.float64).reshape(x.shape[axis], prod(moved.shape[1:]), 1)
    held, rounding, draws = task.target, task.rounding, Draws(key, 0, 1, 1)
    if task.exact_products and not contains(held, task.operand):
        raise ValueError(
            f"accumulate = {task.accumulator}: cumsum of {task.operand.name} terms needs leaves rounded to {held.name}"
        )
    leaves = np.empty_like(terms)
    round_into(terms, leaves, held, rounding, key ^ (FINAL >> 1))
    total, prefixes = np.zeros(terms.shape[1:]), np.empty_like(terms)
    for k, leaf in enumerate(leaves):
        total = prefixes[k] = add_rounded(total, leaf, held, rounding, draws, k)
    result = np.ascontiguousarray(np.moveaxis(prefixes.reshape(moved.shape), 0, axis), x.dtype)
    task.result.round_into(result, result, rounding, key ^ FINAL)
    return result
