"""Parts of a sum accumulated in one format, and their sums chained from +0 in a second one."""

from __future__ import annotations

import numpy as np

from fpsim.numbers.computing import is_float32
from fpsim.sums.additions import add_rounded
from fpsim.sums.plan import Plan
from fpsim.sums.programs import node_after
from fpsim.sums.task import Draws, Sum
from fpsim.sums.trees import products


def no_parts(task: Sum, shape: tuple[int, int]) -> np.ndarray:
    """The sum of no parts."""
    return np.zeros(shape, dtype=np.float32 if is_float32(task.held) else np.float64)


def parts_product(planned: Plan, a: np.ndarray, b: np.ndarray, draws: Draws) -> np.ndarray:
    """a @ b: the parts' sums, chained."""
    task = planned.task
    total = no_parts(task, (a.shape[0], b.shape[1]))
    for lines, part in zip(planned.programs, products(planned, a, b, draws), strict=True):
        total = add_rounded(total, part, task.held, task.rounding, draws, node_after(lines))
    return total
