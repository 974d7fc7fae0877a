"""Kahan's and Neumaier's summation once more, a step at a time over whole matrices, with the errors of every step bounded."""

from __future__ import annotations

from math import inf

import numpy as np

from fpsim.accumulation.kinds import KAHAN
from fpsim.backend.numba.products import LEAF_STEPS
from fpsim.sums.additions import add_rounded
from fpsim.sums.task import Draws, Sum
from fpsim.theory.powers import inflated, ufp
from fpsim.theory.roundings import NEAREST, underflow_error, unit
from fpsim.theory.upward import to_float


def compensated_error(task: Sum, a: np.ndarray, b: np.ndarray, draws: Draws, exact_leaves: bool) -> np.ndarray:
    """A bound of the error of a @ b accumulated by "kahan" or "neumaier", from the operations themselves."""
    run, held, rounding = _Run(task, a, b, draws), task.target, task.rounding
    is_kahan = task.accumulator.kind is KAHAN
    for k in range(a.shape[1]):
        leaf = run.leaf(k, exact_leaves)
        (run.kahan if is_kahan else run.neumaier)(leaf, k)
    if is_kahan:
        run.cost += np.abs(run.lost) / run.unit  # s is off by c from s - c, which is what sums the errors
    else:
        run.cost += ufp(run.add(run.total, run.lost, 4 * a.shape[1]))
    count = 6 * a.shape[1] + 4
    flushed = count * to_float(underflow_error(held, rounding)) if held.flush else 0.0
    return np.where(run.largest < held.max_finite, inflated(run.unit * run.cost + flushed, count), inf)


class _Run:
    """The state of a sum, `cost`, the sum over its inexact operations of ufp of the result, and the largest result."""

    def __init__(self, task: Sum, a: np.ndarray, b: np.ndarray, draws: Draws):
        self.a, self.b = a.astype(np.float64), b.astype(np.float64)
        self.held, self.rounding, self.draws = task.target, task.rounding, draws
        self.unit = float(unit(task.target, task.rounding))
        shape = (a.shape[0], b.shape[1])
        self.total, self.lost, self.cost, self.largest = (np.zeros(shape) for _ in range(4))

    def add(self, x: np.ndarray, y: np.ndarray, step: int, residual: bool = False) -> np.ndarray:
        result = np.asarray(add_rounded(x, y, self.held, self.rounding, self.draws, step, residual=residual), np.float64)
        np.maximum(self.largest, np.abs(result), out=self.largest)  # NaN stays
        return result

    def leaf(self, k: int, exact: bool) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            product = np.multiply.outer(self.a[:, k], self.b[k])
        leaf = self.add(product, np.zeros(product.shape), LEAF_STEPS + k, residual=True)
        if not exact:
            self.cost += np.where(product != 0, ufp(leaf, self.held.min_normal), 0.0)
        return leaf

    def kahan(self, leaf: np.ndarray, k: int) -> None:
        wanted = self.add(leaf, -self.lost, 4 * k)
        new = self.add(self.total, wanted, 4 * k + 1)
        gained = self.add(new, -self.total, 4 * k + 2)
        missed = ufp(wanted)
        if self.rounding in NEAREST:
            missed = np.minimum(missed, np.abs(self.lost) / self.unit)  # the leaf is a value too, |lost| away
        self.cost += np.where(self.lost != 0, missed, 0.0)
        self.cost += np.where(np.abs(wanted) > np.abs(self.total), ufp(gained), 0.0)  # else exact
        self.lost = self.add(gained, -wanted, 4 * k + 3)
        self.cost += ufp(self.lost)
        self.total = new

    def neumaier(self, leaf: np.ndarray, k: int) -> None:
        new = self.add(self.total, leaf, 4 * k)
        kept = np.abs(self.total) >= np.abs(leaf)
        high, low = np.where(kept, self.total, leaf), np.where(kept, leaf, self.total)
        error = self.add(self.add(high, -new, 4 * k + 1), low, 4 * k + 2)  # the inner one is exact
        if self.rounding not in NEAREST:
            self.cost += ufp(error)
        self.lost = self.add(self.lost, error, 4 * k + 3)
        self.cost += ufp(self.lost)
        self.total = new
