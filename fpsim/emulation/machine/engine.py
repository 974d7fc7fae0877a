"""What the rules ask of the accumulation engine: products and sums of values of the format, rounded to it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fpsim.accumulation import Accumulator, given
from fpsim.accumulation.kinds import EXACT
from fpsim.backend import threads
from fpsim.backend.numba import counting
from fpsim.emulation.machine.protocol import Machine
from fpsim.numbers.arguments import holds
from fpsim.numbers.formats import FP64, Format
from fpsim.numbers.operations import odd_sum
from fpsim.numbers.rounding import round_into
from fpsim.sums.axes import mean_axes, sum_axes
from fpsim.sums.batches import batched_products
from fpsim.sums.joined import Products
from fpsim.sums.observers.observer import SumObserver
from fpsim.sums.pairs import pairs_into, together
from fpsim.sums.product import product_into
from fpsim.sums.splitting import pairs_in_parts
from fpsim.sums.task import Draws, Sum


class Watch:
    """Counts what the last rounding of a product or sum does, in the row given or the machine's.

    What a saturating accumulator of the result's own format does inside a sum shows nowhere, and is not counted.
    """

    def __init__(self, machine: Machine, row: np.ndarray | None = None):
        self._machine = machine
        self._counted = False
        self._lock = threading.Lock()
        self.row = machine.row() if row is None else row
        self._shows = counting.INFINITE if machine.arithmetic.fmt.has_infinity else counting.NAN  # an overflow
        self._before = int(self.row[self._shows])

    def __call__(self, accumulated: np.ndarray) -> None:
        self._counted = True
        counts = np.zeros_like(self.row)
        self._machine.count_before(accumulated.reshape(-1), counts)
        with self._lock:  # parts of a convolution are computed by several threads at once
            self.row += counts

    def finish(self, out: np.ndarray, *operands: np.ndarray) -> None:
        """Count results that nobody counted; what an overflow gives, an infinity or else a NaN, is one from finite operands."""
        if not self._counted:
            counting.count_results(out.reshape(-1), self.row)
        found = int(self.row[self._shows]) - self._before
        if found and all(np.isfinite(operand).all() for operand in operands):
            self.row[self._shows] -= found
            self.row[counting.OVERFLOWS] += found


def product(
    machine: Machine, task: Sum, a: np.ndarray, b: np.ndarray, addend: np.ndarray | None = None, alpha: float = 1.0,
    beta: float = 1.0,
) -> np.ndarray:  # fmt: skip
    """a @ b (2-D, values of the format) through the accumulator, then rnd(rnd(alpha * acc) + rnd(beta * addend)) there.

    Factors of 1 are skipped. `addend` broadcasts to the result. One rounding to the format at the end; float32 out. `task`
    is what `machine.sum_of` says of a and b.
    """
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    draws = Draws(machine.draws(), 0, out.shape[1])
    if alpha == 1 and (addend is None or beta == 1):
        addends = () if addend is None else (addend,)
        watch = Watch(machine)
        product_into(task, a, b, out, draws, addends, machine.look_into(task), watch)
        watch.finish(out, a, b, *addends)
        return out
    # Without factors the engine's own epilogue does; with them its value before the last rounding is what they scale.
    kept: list[np.ndarray] = []

    def keep(accumulated: np.ndarray) -> None:
        kept.append(accumulated.astype(np.float64))  # a copy: the engine rounds it in place next

    product_into(task, a, b, out, draws, (), machine.look_into(task), None if task.accumulator.held is None else keep)
    total = kept[0] if kept else out.astype(np.float64)
    return _epilogue(machine, total, task.accumulator.promoted or task.target, addend, alpha, beta)


def products(
    machine: Machine, task: Sum, a: np.ndarray, b: np.ndarray, addend: np.ndarray | None = None, alpha: float = 1.0,
    beta: float = 1.0,
) -> np.ndarray:  # fmt: skip
    """`product` of each pair of matrices of two batches, (n, i, k) and (n, k, j); the pairs are split among threads.

    `task` may be of other operands than those that the machine reads.
    """
    if len(a) == 1:
        return product(machine, task, a[0], b[0], None if addend is None else addend[0], alpha, beta)[None]
    out = np.empty((a.shape[0], a.shape[1], b.shape[2]), np.float32)
    if alpha != 1 or (addend is not None and beta != 1):
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            out[index] = product(machine, task, left, right, None if addend is None else addend[index], alpha, beta)
        return out
    task, a, b = pairs_in_parts(task, a, b)
    observer = machine.look_into(task)
    in_turn = addend is not None or machine.arithmetic.stochastic
    accumulated = None if in_turn else _in_one_call(task, a, b, observer)
    if accumulated is not None:
        return _finished(machine, task, a, b, accumulated, observer)
    watch = Watch(machine)
    if not in_turn and _together(joined := Products(task, 0, observer, watch), a, b):
        pairs_into(joined, a, b, out)
        watch.finish(out, a, b)
        return out

    def one(i: int, draws: Draws, watch: Watch) -> None:
        addends = () if addend is None else (addend[i],)
        product_into(task, a[i], b[i], out[i], draws, addends, observer, watch)
        watch.finish(out[i], a[i], b[i], *addends)

    _one_by_one(machine, one, out, a.shape[2])
    return out


def accumulated_products(machine: Machine, task: Sum, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """As `products`, left as the accumulator has them: float32 where it holds the accumulator's format, else float64.

    An exact accumulator's sums are rounded once, to fp64; an infinity from finite operands counts as an overflow.
    """
    task, a, b = pairs_in_parts(task, a, b)
    observer = machine.look_into(task)
    held = FP64 if task.accumulator.kind is EXACT else task.held
    unrounded = task.rounded_to(held)
    made = np.empty((a.shape[0], a.shape[1], b.shape[2]), np.float32 if holds(np.dtype(np.float32), held) else np.float64)
    if not machine.arithmetic.stochastic:
        accumulated = _in_one_call(task, a, b, observer)
        if accumulated is not None:
            Watch(machine).finish(np.ascontiguousarray(accumulated), a, b)
            return accumulated
        if _together(joined := Products(unrounded, 0, observer), a, b):
            pairs_into(joined, a, b, made)
            Watch(machine).finish(made, a, b)
            return made

    def one(i: int, draws: Draws, watch: Watch) -> None:
        product_into(unrounded, a[i], b[i], made[i], draws, observer=observer)
        watch.finish(made[i], a[i], b[i])

    _one_by_one(machine, one, made, a.shape[2])
    return made


def _together(products: Products, a: np.ndarray, b: np.ndarray) -> bool:
    """Whether these pairs are computed in one call. They are finite: else which infinities are overflows is asked of each."""
    return together(products, a, b) and all(np.isfinite(stack).all() for stack in (a, b))


def _one_by_one(machine: Machine, one: Callable[[int, Draws, Watch], None], out: np.ndarray, terms: int) -> None:
    """`one(i, draws, watch)` for each matrix of `out`, split among threads."""
    row = machine.row()
    keys = [machine.draws() for _ in out]
    rows = np.zeros((len(out), row.size), row.dtype)

    def some(first: int, last: int) -> None:
        for i in range(first, last):
            one(i, Draws(keys[i], 0, out.shape[2]), Watch(machine, rows[i]))

    threads.run(some, threads.parts(len(out), out.size * terms))
    row += rows.sum(axis=0)


def _in_one_call(task: Sum, a: np.ndarray, b: np.ndarray, observer: SumObserver | None) -> np.ndarray | None:
    """Accumulated products of all pairs at once, in the accumulator's format; None where they go one by one."""
    if task.split is not None:
        return None
    if observer is not None:
        return observer.products(task, a, b)
    product = batched_products(task, a, b)
    if product is None:
        return None
    accumulated, again = product
    for pair in again:
        target = np.empty(accumulated.shape[1:], np.float64)
        product_into(task.rounded_to(task.target), a[pair], b[pair], target)
        accumulated[pair] = target
    return accumulated


def _finished(
    machine: Machine, task: Sum, a: np.ndarray, b: np.ndarray, accumulated: np.ndarray, observer: SumObserver | None
) -> np.ndarray:
    """Accumulated products counted and rounded to the format."""
    row = machine.row()
    counts = np.zeros_like(row)
    out = np.empty(accumulated.shape, np.float32)
    values = np.ascontiguousarray(accumulated).reshape(-1)
    machine.arithmetic.finishing.round(values, out.reshape(-1), counts)
    if observer is not None and observer.is_whole and task.held != task.result:
        observer.rounded(values, out.reshape(-1), task.result, task.rounding, 0, 0)
    if counts[counting.INFINITE] and task.target == task.result:  # as `Watch.finish` has it: overflows
        for left, right, result in zip(a, b, accumulated, strict=True):
            infinite = int(np.isinf(result).sum())
            if infinite and np.isfinite(left).all() and np.isfinite(right).all():
                counts[counting.INFINITE] -= infinite
                counts[counting.OVERFLOWS] += infinite
    row += counts
    return out


def _epilogue(
    machine: Machine, total: np.ndarray, inner: Format, addend: np.ndarray | None, alpha: float, beta: float
) -> np.ndarray:
    if alpha != 1:
        total = rounded(machine, total * machine.scalar(float(alpha)), inner)
    if addend is not None:
        scaled = addend.astype(np.float64)
        if beta != 1:
            scaled = rounded(machine, scaled * machine.scalar(float(beta)), inner)
        total = rounded(machine, odd_sum(total, scaled, machine.arithmetic.rounding), inner)
    return machine.finish(torch.from_numpy(np.ascontiguousarray(total))).numpy()


def rounded(machine: Machine, values: np.ndarray, fmt: Format) -> np.ndarray:
    """float64 values rounded to a format, in the mode of the machine; nothing is counted."""
    values = np.ascontiguousarray(values)
    round_into(values, values, fmt, machine.arithmetic.rounding, machine.draws())
    return values


def reduction(machine: Machine, x: np.ndarray, axes: tuple[int, ...], mean: bool = False) -> np.ndarray:
    """The sum (or mean) over the axes, in row-major order of what is summed; float32 out, the axes gone."""
    watch = Watch(machine)
    key = machine.draws()
    task = machine.arithmetic.task
    out = (mean_axes if mean else sum_axes)(task, x, axes, key, machine.look_into(task.of_terms), watch)
    watch.finish(np.ascontiguousarray(out), x)
    return out


def reduction_in_parts(machine: Machine, x: np.ndarray, held: Format, parts: list[tuple[slice, Any]]) -> np.ndarray:
    """The sums of columns: of each slice of them by a tree of nested rows, each addition rounded to `held`."""
    watch, key, fmt = Watch(machine), machine.draws(), machine.arithmetic.fmt
    out = np.empty(x.shape[1], dtype=np.float32)
    for number, (columns, nested) in enumerate(parts):
        task = Sum.of(fmt, Accumulator(format=held, order=given(nested)), machine.arithmetic.rounding, fmt)
        out[columns] = sum_axes(task, x[:, columns], (0,), key + number, machine.look_into(task.of_terms), watch)
    watch.finish(out, x)
    return out
