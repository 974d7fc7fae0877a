"""Products along trees with nodes of more than two terms: node by node over all elements, each exact sum rounded once."""

from __future__ import annotations

import numpy as np

from fpsim.accumulation.program import ADD, CHAIN, FUSED, ZERO
from fpsim.accumulation.trees import Tree
from fpsim.backend import numba as kernels
from fpsim.numbers.computing import is_float64
from fpsim.numbers.rounding import Rounding
from fpsim.sums.additions import add_rounded
from fpsim.sums.plan import Plan
from fpsim.sums.task import Draws, Sum

_LEAF_STEPS = 2**31  # the rounding of leaf k draws as step 2^31 + k, as in kernels
_ELEMENTS = 2**17  # of the result at a time: a stack of them stays in the cache


def node_product(planned: Plan, a: np.ndarray, b: np.ndarray, draws: Draws) -> np.ndarray:
    """a @ b along the plan's tree, whatever it is: a new float64 array of values of the accumulator's format, (+0) + tree.

    Operands' products must be exact in float64. Raises ValueError for additions in fp64, which need more than that.
    """
    if is_float64(planned.task.target):
        raise ValueError("accumulate: a tree with nodes of more than two terms has no kernel for fp64 additions")
    rows, columns = a.shape[0], b.shape[1]
    out = np.empty((rows, columns))
    height = max(1, _ELEMENTS // max(1, columns))
    for first in range(0, rows, height):
        part = slice(first, first + height)
        out[part] = _Nodes(planned.task, a[part], b, draws.at(first)).run(planned.tree)
    return out


class _Nodes:
    def __init__(self, task: Sum, a: np.ndarray, b: np.ndarray, draws: Draws):
        self.a, self.b = (np.asarray(x, dtype=np.float64) for x in (a, b))
        self.target, self.rounding, self.exact_products, self.draws = task.target, task.rounding, task.exact_products, draws
        self.node = 0

    def run(self, tree: Tree) -> np.ndarray:
        zero = np.zeros((self.a.shape[0], self.b.shape[1]))
        stack: list[np.ndarray] = []
        for step in tree.steps.tolist():
            if step >= 0:
                stack.append(self._leaf(step))
            elif step == ZERO:
                stack.append(zero)
            elif step == ADD or step > FUSED:
                right = stack.pop() if step == ADD else self._leaf(CHAIN - step)
                stack[-1] = self._sum([stack[-1], right])
            else:
                count = FUSED - step
                terms = stack[-count:]
                del stack[-count:]
                stack.append(self._sum(terms))
        return stack[0] if int(tree.steps[0]) == ZERO else self._sum([zero, stack[0]])

    def _leaf(self, k: int) -> np.ndarray:
        with np.errstate(all="ignore"):
            product = self.a[:, k : k + 1] * self.b[k]
        if self.exact_products:
            return product
        zero = np.copysign(0.0, product)  # of the product's sign, which a sum of both keeps
        return add_rounded(product, zero, self.target, self.rounding, self.draws, _LEAF_STEPS + k, residual=True)

    def _sum(self, terms: list[np.ndarray]) -> np.ndarray:
        """The exact sum rounded once; IEEE 754's for infinities and NaN."""
        values = np.stack(terms).reshape(len(terms), -1)
        with np.errstate(invalid="ignore"):
            special = values.sum(axis=0)
        finite = np.isfinite(values).all(axis=0)
        high, low = np.empty(values.shape[1]), np.empty(values.shape[1])
        kernels.exact.combine(np.where(finite, values, 0), high, low)
        nothing = (high == 0) & (low == 0)
        negative = np.signbit(values).all(axis=0) if self.rounding is not Rounding.DOWN else np.signbit(values).any(axis=0)
        cancelled = (values != 0).any(axis=0) & (self.rounding is Rounding.DOWN)
        zero = np.where(negative | cancelled, -0.0, 0.0)
        high, low = (np.where(finite, np.where(nothing, zero, x), other) for x, other in ((high, special), (low, 0.0)))
        shape = terms[0].shape
        total = add_rounded(
            high.reshape(shape), low.reshape(shape), self.target, self.rounding, self.draws, self.node, residual=True
        )
        self.node += 1
        return total
