"""What the rules ask of the accumulation engine: products and sums of values of the format, rounded to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fpsim._kernels import counting
from fpsim._sums import mean_axes, sum_axes
from fpsim.formats import Format
from fpsim.products import matmul_into
from fpsim.rounding import round_into


class Watch:
    """Counts what the last rounding of a product or sum does, and what its accumulator did."""

    def __init__(self, machine: Any):
        self._machine = machine
        self._counted = False
        self.row = machine.row()

    def __call__(self, accumulated: np.ndarray) -> None:
        self._counted = True
        self._machine.count_before(accumulated.reshape(-1), self.row)

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
    machine: Any, a: np.ndarray, b: np.ndarray, addend: np.ndarray | None = None, alpha: float = 1.0, beta: float = 1.0
) -> np.ndarray:
    """a @ b (2-D, values of the format) through the accumulator, then rnd(rnd(alpha * acc) + rnd(beta * addend)) there.

    Factors of 1 are skipped. `addend` broadcasts to the result. One rounding to the format at the end; float32 out.
    """
    policy = machine.policy
    key = machine.key() if machine.stochastic else 0
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    if alpha == 1 and (addend is None or beta == 1):
        watch = Watch(machine)
        matmul_into(a, b, out, policy.fmt, policy.accumulator, policy.rounding, key, addend, watch)
        watch.finish(out, a, b, *(() if addend is None else (addend,)))
        return out
    # Without factors the engine's own epilogue does; with them its value before the last rounding is what they scale.
    kept: list[np.ndarray] = []

    def keep(accumulated: np.ndarray) -> None:
        kept.append(accumulated.astype(np.float64))  # a copy: the engine rounds it in place next

    matmul_into(a, b, out, policy.fmt, policy.accumulator, policy.rounding, key, None, keep)
    total = kept[0] if kept else out.astype(np.float64)
    return _epilogue(machine, total, policy.accumulator.promoted or policy.accumulator.format, addend, alpha, beta)


def _epilogue(
    machine: Any, total: np.ndarray, inner: Format, addend: np.ndarray | None, alpha: float, beta: float
) -> np.ndarray:
    if alpha != 1:
        total = _rounded(machine, total * machine.scalar(float(alpha)), inner)
    if addend is not None:
        from fpsim.emulation.arithmetic import odd_sum

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
    out = function(x, axes, policy.fmt, policy.accumulator, policy.rounding, machine.key() if machine.stochastic else 0)
    watch.finish(np.ascontiguousarray(out), x)
    return out
