"""Sums of products that are written out first, exactly, in float64: for what adds whole rows at a time, and has no lanes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fpsim.accumulation.kinds import EXACT, TREE
from fpsim.numbers.computing import is_float64, products_are_exact
from fpsim.numbers.formats import FP64
from fpsim.sums.exact import exact_product
from fpsim.sums.plan import plan
from fpsim.sums.task import Draws, Sum
from fpsim.sums.wide_nodes import node_product


def serves(task: Sum, leaves: int) -> bool:
    """Whether float64 holds all products, and they are added exactly or along a tree of nodes of more than two terms."""
    kind, exact = task.accumulator.kind, products_are_exact(task.operand, 53, -1074, 1023)
    return exact and (kind is EXACT or (kind is TREE and not is_float64(task.target) and not plan(task, leaves).is_binary))


def column_sums(
    task: Sum, products: np.ndarray, terms: Sequence[np.ndarray], draws: Draws,
    before_rounding: Callable[[np.ndarray], None] | None = None,
) -> np.ndarray:  # fmt: skip
    """The accumulated sums of the columns of float64 (leaves, sums), with the terms (sums) that belong to them.

    `before_rounding` is called with exact sums as `product_into` calls it.
    """
    ones = np.ones((1, len(products)))
    if task.accumulator.kind is not EXACT:
        return node_product(plan(task, len(products)), ones, products, draws)[0]
    of_products = Sum.of(FP64, task.accumulator, task.rounding, task.result)
    return exact_product(of_products, ones, products, [term[None] for term in terms], draws, before_rounding)[0]
