"""What the rules ask of the accumulation engine: products and sums of values of the format, rounded to it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch

from fpsim.arrays.products import matmul_into
from fpsim.backend import threads
from fpsim.backend.numba import counting
from fpsim.emulation.machine.policy import Policy, mixed_products
from fpsim.numbers.arguments import holds
from fpsim.numbers.formats import FP64, Format
from fpsim.numbers.rounding import round_into
from fpsim.sums.axes import mean_axes, sum_axes
from fpsim.sums.batches import batched_tree_products

Factors = tuple[Format, Format] | None


class Watch:
    """Counts what the last rounding of a product or sum does, in the row given or the machine's."""

    def __init__(self, machine: Any, row: np.ndarray | None = None):
        self._machine = machine
        self._counted = False
        self._lock = threading.Lock()
        self.row = machine.row() if row is None else row

    def __call__(self, accumulated: np.ndarray) -> None:
        self._counted = True
        own = np.zeros_like(self.row)
        self._machine.count_before(accumulated.reshape(-1), own)
        with self._lock:  # parts of a convolution are computed by several threads at once
            self.row += own

    def finish(self, out: np.ndarray, *operands: np.ndarray) -> None:
        """Count results that nobody counted; an infinity from finite operands is an overflow."""
        before = int(self.row[counting.INFINITE])
        if not self._counted:
            counting.count_results(out.reshape(-1), self.row)
        infinite = int(self.row[counting.INFINITE]) - before
        if infinite and all(np.isfinite(operand).all() for operand in operands):
            self.row[counting.INFINITE] -= infinite
            self.row[counting.OVERFLOWS] += infinite


def product(
    machine: Any, a: np.ndarray, b: np.ndarray, addend: np.ndarray | None = None, alpha: float = 1.0, beta: float = 1.0,
    factors: Factors = None,
) -> np.ndarray:  # fmt: skip
    """a @ b (2-D, values of the format) through the accumulator, then rnd(rnd(alpha * acc) + rnd(beta * addend)) there.

    Factors of 1 are skipped. `addend` broadcasts to the result. One rounding to the format at the end; float32 out.
    `factors` is what `machine.factors` says of a and b.
    """
    policy, read = machine.policy, machine.operand_format
    key = machine.key() if machine.stochastic else 0
    formats: dict[str, Any] = {"result_format": policy.fmt, "factors": factors}
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    if alpha == 1 and (addend is None or beta == 1):
        watch = Watch(machine)
        matmul_into(a, b, out, read, policy.accumulator, policy.rounding, key, addend, watch, **formats)
        watch.finish(out, a, b, *(() if addend is None else (addend,)))
        return out
    # Without factors the engine's own epilogue does; with them its value before the last rounding is what they scale.
    kept: list[np.ndarray] = []

    def keep(accumulated: np.ndarray) -> None:
        kept.append(accumulated.astype(np.float64))  # a copy: the engine rounds it in place next

    matmul_into(a, b, out, read, policy.accumulator, policy.rounding, key, None, keep, **formats)
    total = kept[0] if kept else out.astype(np.float64)
    return _epilogue(machine, total, policy.accumulator.promoted or policy.accumulator.format, addend, alpha, beta)


def products(
    machine: Any, a: np.ndarray, b: np.ndarray, addend: np.ndarray | None = None, alpha: float = 1.0, beta: float = 1.0,
    factors: Factors = None, operands: Format | None = None,
) -> np.ndarray:  # fmt: skip
    """`product` of each pair of matrices of two batches, (n, i, k) and (n, k, j); the pairs are split among threads.

    `operands` is the format of a and b where it is not the one that the machine reads; there is no addend then.
    """
    out = np.empty((a.shape[0], a.shape[1], b.shape[2]), np.float32)
    if alpha != 1 or (addend is not None and beta != 1):
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            out[index] = product(machine, left, right, None if addend is None else addend[index], alpha, beta, factors)
        return out
    policy, read = _multiplying(machine, operands)
    accumulated = None if addend is not None else _in_one_call(a, b, policy, read)
    if accumulated is not None:
        return _finished(machine, a, b, accumulated, policy)
    row = machine.row()
    keys = [machine.key() if machine.stochastic else 0 for _ in a]
    rows = np.zeros((len(a), row.size), row.dtype)

    def some(first: int, last: int) -> None:
        for i in range(first, last):
            watch = Watch(machine, rows[i])
            term = None if addend is None else addend[i]
            how = (read, policy.accumulator, policy.rounding, keys[i], term, watch)
            matmul_into(a[i], b[i], out[i], *how, result_format=policy.fmt, factors=factors)
            watch.finish(out[i], a[i], b[i], *(() if term is None else (term,)))

    threads.run(some, threads.parts(len(a), out.size * a.shape[2]))
    row += rows.sum(axis=0)
    return out


def accumulated_products(
    machine: Any, a: np.ndarray, b: np.ndarray, factors: Factors = None, operands: Format | None = None
) -> np.ndarray:
    """As `products`, left as the accumulator has them: float32 where it holds the accumulator's format, else float64.

    An exact accumulator's sums are rounded once, to fp64; an infinity from finite operands counts as an overflow.
    """
    policy, read = _multiplying(machine, operands)
    out = _in_one_call(a, b, policy, read)
    row = machine.row()
    if out is not None:
        watch = Watch(machine, row)
        watch.finish(np.ascontiguousarray(out), a, b)
        return out
    held = FP64 if policy.accumulator.kind == "exact" else policy.accumulator.promoted or policy.accumulator.format
    out = np.empty((a.shape[0], a.shape[1], b.shape[2]), np.float32 if holds(np.dtype(np.float32), held) else np.float64)
    keys = [machine.key() if machine.stochastic else 0 for _ in a]
    rows = np.zeros((len(a), row.size), row.dtype)

    def some(first: int, last: int) -> None:
        for i in range(first, last):
            how = (read, policy.accumulator, policy.rounding, keys[i])
            matmul_into(a[i], b[i], out[i], *how, result_format=held, factors=factors)
            Watch(machine, rows[i]).finish(out[i], a[i], b[i])

    threads.run(some, threads.parts(len(a), out.size * a.shape[2]))
    row += rows.sum(axis=0)
    return out


def _multiplying(machine: Any, operands: Format | None) -> tuple[Policy, Format]:
    """How the machine multiplies operands of that format (None: the one that it reads), and the format itself."""
    if operands is None or operands == machine.operand_format:
        return machine.policy, machine.operand_format
    return mixed_products(machine.policy, operands), operands


def _in_one_call(a: np.ndarray, b: np.ndarray, policy: Policy, read: Format) -> np.ndarray | None:
    """Accumulated products of all pairs at once, in the accumulator's format; None where they go one by one."""
    found = batched_tree_products(a, b, read, policy.accumulator, policy.rounding)
    if found is None:
        return None
    accumulated, again = found
    for pair in again:
        target = np.empty(accumulated.shape[1:], np.float64)
        how = (read, policy.accumulator, policy.rounding)
        matmul_into(a[pair], b[pair], target, *how, result_format=policy.accumulator.format)
        accumulated[pair] = target
    return accumulated


def _finished(machine: Any, a: np.ndarray, b: np.ndarray, accumulated: np.ndarray, policy: Policy) -> np.ndarray:
    """Accumulated products counted and rounded to the format."""
    row = machine.row()
    counts = np.zeros_like(row)
    out = np.empty(accumulated.shape, np.float32)
    values = np.ascontiguousarray(accumulated).reshape(-1)
    machine.finishing.round(values, out.reshape(-1), counts)
    if counts[counting.INFINITE] and policy.accumulator.format == policy.fmt:  # as `Watch.finish` has it: overflows
        for left, right, result in zip(a, b, accumulated, strict=True):
            infinite = int(np.isinf(result).sum())
            if infinite and np.isfinite(left).all() and np.isfinite(right).all():
                counts[counting.INFINITE] -= infinite
                counts[counting.OVERFLOWS] += infinite
    row += counts
    return out


def _epilogue(
    machine: Any, total: np.ndarray, inner: Format, addend: np.ndarray | None, alpha: float, beta: float
) -> np.ndarray:
    if alpha != 1:
        total = _rounded(machine, total * machine.scalar(float(alpha)), inner)
    if addend is not None:
        from fpsim.emulation.rules.arithmetic import odd_sum

        scaled = addend.astype(np.float64)
        if beta != 1:
            scaled = _rounded(machine, scaled * machine.scalar(float(beta)), inner)
        total = _rounded(machine, odd_sum(total, scaled, machine.rounding), inner)
    return machine.finish(torch.from_numpy(np.ascontiguousarray(total))).numpy()


def _rounded(machine: Any, values: np.ndarray, fmt: Format) -> np.ndarray:
    values = np.ascontiguousarray(values)
    round_into(values, values, fmt, machine.rounding, machine.key() if machine.stochastic else 0)
    return values


def reduction(machine: Any, x: np.ndarray, axes: tuple[int, ...], mean: bool = False) -> np.ndarray:
    """The sum (or mean) over the axes, in row-major order of what is summed; float32 out, the axes gone."""
    policy = machine.policy
    watch = Watch(machine)
    function = mean_axes if mean else sum_axes
    key = machine.key() if machine.stochastic else 0
    out = function(x, axes, machine.operand_format, policy.accumulator, policy.rounding, key, policy.fmt)
    watch.finish(np.ascontiguousarray(out), x)
    return out
