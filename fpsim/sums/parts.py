"""Parts of a sum accumulated in one format, and their sums, rounded to a second one, chained from +0 in it."""

from __future__ import annotations

from typing import Any

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


def chained(
    total: np.ndarray, part: np.ndarray, task: Sum, draws: Draws, lines: np.ndarray, add: Any = add_rounded
) -> np.ndarray:
    """The sum of a part, whose program these lines are, rounded to the second format and added to those before by `add`."""
    node = node_after(lines)
    if task.accumulator.rounds_parts:
        part = add(part, np.copysign(np.zeros_like(part), part), task.held, task.rounding, draws, node)
        node += 1
    return add(total, part, task.held, task.rounding, draws, node)


def parts_product(planned: Plan, a: np.ndarray, b: np.ndarray, draws: Draws) -> np.ndarray:
    """a @ b: the parts' sums, chained."""
    task = planned.task
    total = no_parts(task, (a.shape[0], b.shape[1]))
    for lines, part in zip(planned.programs, products(planned, a, b, draws), strict=True):
        total = chained(total, part, task, draws, lines)
    return total
