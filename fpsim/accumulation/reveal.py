"""The summation tree of a black box, found by masked probing.

Method: "FPRev: revealing floating-point accumulation order". One leaf is a large M, another is -M, others hold a small
unit. Units that are added to M or to -M before the two meet are lost; units added afterwards survive. So the number of
survivors is the number of units outside the smallest subtree that holds both leaves. Taken for one leaf (the pivot) and
every other one, it gives the groups that join the path from the pivot to the root, innermost first; each group is then
revealed in the same way. Leaves of one fused (multi-term) node meet the pivot, and each other, at the same node.

Units are placed on chosen leaves only, at most ``largest_count`` at a time, and all the rest is zero: so an output that
counts to 256 only still tells the levels apart. Of a larger group a sample ranks the others, bucket by bucket.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fpsim.accumulation.accumulator import Accumulator
from fpsim.accumulation.orders import given
from fpsim.accumulation.program import ADD, CHAIN, FUSED, ZERO
from fpsim.accumulation.reveal_format import format_of_additions
from fpsim.accumulation.trees import Tree

# (largest count, unit, mask): mask + count * unit is mask, rounded to nearest or toward zero, to any format that holds
# float16, float32 or float64; sums of float16 inside float32 too.
_DEFAULTS = {
    "float16": (2048, 2.0**-24, 2.0**15),
    "float32": (2**24, 1.0, 2.0**100),
    "float64": (2**53, 1.0, 2.0**200),
}
_CONFIRMING_PROBES = 16


def reveal(
    function: Callable[[np.ndarray], Any],
    n: int,
    *,
    dtype: Any = np.float32,
    unit: float | None = None,
    mask: float | None = None,
    largest_count: int | None = None,
    accumulator: bool = False,
) -> Any:
    """The summation tree of ``function``, which maps a 1-D array of n leaves to their sum; in canonical form.

    function       called with arrays of ``dtype`` (float16, float32 or float64), about n log2(n) times for most trees
                   and 2n times for chains; the order in which it adds must not depend on the values, and its additions
                   must round to nearest or toward zero
    unit, mask     the small value that is counted and the large one that absorbs it: mask + largest_count * unit must
                   round to mask in every format that the function adds in
    largest_count  how many units the function counts exactly, output included: 2048 for fp16 (the default for float16),
                   256 for bf16, 16 for e4m3
    accumulator    True for an Accumulator instead: the tree with the format that the function adds in, which may be wider
                   than what it returns; `fpsim.sum(x, fmt, accumulate=...)` then repeats it

    `matmul_function` makes such a function of a matrix product. Raises ValueError when an answer counts no units or
    when the answers fit no tree: then the function is not a sum in a fixed order, or unit and mask do not suit it.
    """
    type_name = np.dtype(dtype).name
    if type_name not in _DEFAULTS:
        raise ValueError(f"dtype must be one of {', '.join(_DEFAULTS)}, got {type_name}")
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0:
        raise ValueError(f"n must be a whole number of at least 0, got {n!r}")
    defaults = _DEFAULTS[type_name]
    most, small, large = (
        default if value is None else value
        for value, default in zip((largest_count, unit, mask), defaults, strict=True)
    )
    if n == 0:
        return Tree([ZERO])
    probe = _Probe(function, int(n), np.dtype(dtype), float(small), float(large), int(most))
    tree = Tree(probe.subtrees(np.arange(n), None)[0]).canonical()
    probe.confirm(tree)
    if accumulator:
        return Accumulator(format=format_of_additions(function, tree, np.dtype(dtype)), order=given(tree))
    return tree


def matmul_function(
    matmul: Callable[[Any, Any], Any],
    n: int,
    *,
    rows: int = 1,
    columns: int = 1,
    row: int = 0,
    column: int = 0,
    dtype: Any = np.float32,
    convert: Callable[[np.ndarray], Any] = np.asarray,
) -> Callable[[np.ndarray], float]:
    """The function that `reveal` probes to find the order in which ``matmul`` adds the n products of one element.

    The leaves are row ``row`` of a (rows, n) matrix, zero elsewhere, times ones (n, columns); the result is element
    (row, column) of ``matmul(convert(a), convert(b))``. ``convert`` makes the matrices what the library takes, e.g.
    ``lambda x: torch.from_numpy(x).bfloat16()`` (then ``largest_count=256``).
    """
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(f"row {row} and column {column} must lie inside the ({rows}, {columns}) product")
    left, ones = np.zeros((rows, n), dtype=dtype), convert(np.ones((n, columns), dtype=dtype))

    def sum_of_leaves(leaves: np.ndarray) -> float:
        left[row] = leaves
        return float(matmul(convert(left), ones)[row, column])

    return sum_of_leaves


def tree_of_survivors(survivors: np.ndarray) -> Tree:
    """The summation tree, in canonical form, of a table: how many other leaves are added after leaves i and j have met.

    The table is (n, n) and symmetric, its diagonal is not read; a recording of masked probes gives it without knowing
    anything of trees. Raises ValueError for another shape, and where no tree fits.
    """
    table = np.asarray(survivors)
    n = len(table)
    if table.shape != (n, n) or not np.array_equal(table, table.T):
        raise ValueError(f"survivors must be a square symmetric table, got shape {table.shape}")

    def answer(leaves: np.ndarray) -> float:
        pivot, other = int(np.argmax(leaves)), int(np.argmin(leaves))
        return float(np.count_nonzero((leaves == 1) & (table[pivot] < table[pivot, other])))

    tree = reveal(answer, n, dtype=np.float64)
    differ = _outside(tree) != table
    np.fill_diagonal(differ, False)
    if differ.any():
        i, j = (int(leaf) for leaf in np.argwhere(differ)[0])
        raise ValueError(f"survivors: {table[i, j]} for leaves {i} and {j} fits no tree")
    return tree


def _outside(tree: Tree) -> np.ndarray:
    """For every two leaves how many others lie outside the smallest subtree that holds both."""
    sizes = np.zeros((tree.leaves, tree.leaves), np.int64)

    def meet(*terms: np.ndarray) -> np.ndarray:
        members = terms[0]
        size = sum(map(len, terms))
        for term in terms[1:]:
            sizes[np.ix_(members, term)] = sizes[np.ix_(term, members)] = size
            members = np.concatenate([members, term])
        return members

    tree.evaluate([np.array([leaf]) for leaf in range(tree.leaves)], meet, zero=np.zeros(0, np.int64))
    return tree.leaves - sizes


class _Probe:
    """The black box with what a probe of it needs."""

    def __init__(
        self, function: Callable[[np.ndarray], Any], n: int, dtype: np.dtype, unit: float, mask: float, most: int
    ) -> None:
        if most < 1:
            raise ValueError(f"largest_count must be at least 1, got {most}")
        with np.errstate(over="ignore"):
            exact = float(dtype.type(unit)) == unit and float(dtype.type(mask)) == mask
        if not (0 < unit < mask < np.inf and exact):
            raise ValueError(f"unit {unit} and mask {mask} must be values of {dtype}, with 0 < unit < mask")
        self.function, self.n, self.most, self.unit, self.mask = function, n, most, unit, mask
        self.leaves = np.zeros(n, dtype=dtype)
        self.random = np.random.default_rng(n)

    def survivors(self, pivot: int, other: int, units: np.ndarray) -> int:
        """How many units, placed on ``units`` but for the two leaves themselves, are added after the two have met."""
        leaves = self.leaves
        leaves[units] = self.unit
        placed = len(units) - int(leaves[pivot] != 0) - int(leaves[other] != 0)
        leaves[pivot], leaves[other] = self.mask, -self.mask
        answer = float(self.function(leaves.copy()))
        leaves[units] = 0
        leaves[pivot] = leaves[other] = 0
        count = answer / self.unit
        if not (0 <= count <= placed and count == int(count)):
            raise ValueError(
                f"function: with {self.mask} at leaf {pivot}, its negative at leaf {other} and {placed} units of "
                f"{self.unit} it gave {answer}, no number of units; it is not a sum in a fixed order, or dtype (which it may "
                "compute below), unit, mask or largest_count do not suit it"
            )
        return int(count)

    def subtrees(self, members: np.ndarray, outside: int | None) -> list[list[int]]:
        """The programs of the subtrees that ``members`` form where they meet the leaf ``outside``.

        One, unless that node is a fused one; its members then meet each other where they meet ``outside``.
        """
        programs: list[list[int]] = []
        rest: np.ndarray | None = members
        while rest is not None:
            pivot = int(self.random.choice(rest))
            groups = self.levels(pivot, rest[rest != pivot])
            rest = None
            if outside is not None and groups and not self.survivors(pivot, int(groups[-1][0]), np.array([outside])):
                rest = groups.pop()
            steps = [pivot]
            for group in groups:
                joining = self.subtrees(group, pivot)
                for program in joining:
                    steps += program
                if len(joining) > 1:
                    steps.append(FUSED - 1 - len(joining))
                elif len(joining[0]) == 1:
                    steps[-1] = CHAIN - steps[-1]
                else:
                    steps.append(ADD)
            programs.append(steps)
        return programs

    def levels(self, pivot: int, others: np.ndarray) -> list[np.ndarray]:
        """``others`` in groups that meet the pivot at the same node, innermost first."""
        groups: list[np.ndarray] = []
        agenda = [others] if len(others) else []
        while agenda:
            members = agenda.pop()
            if len(members) == 1:
                groups.append(members)
            elif len(members) <= self.most:
                groups.extend(self._ranked(pivot, members, members))
            else:
                buckets = self._buckets(pivot, members)
                if len(buckets) == 1:
                    groups.append(members)
                else:
                    agenda.extend(reversed(buckets))
        return groups

    def _ranked(self, pivot: int, members: np.ndarray, sample: np.ndarray) -> list[np.ndarray]:
        """``members`` by how many of the sample meet the pivot farther out than they do, innermost first."""
        farther = np.array([self.survivors(pivot, int(other), sample) for other in members])
        return [members[farther == count] for count in np.unique(farther)[::-1]]

    def _buckets(self, pivot: int, members: np.ndarray) -> list[np.ndarray]:
        """Two or more buckets of ``members``, innermost first; one if all of them meet the pivot at the same node."""
        sample = self.random.choice(members, self.most, replace=False)
        buckets = self._ranked(pivot, members, sample)
        if len(buckets) > 1:
            return buckets
        # No member is nearer than those of the sample, and a sample with one that is farther out splits them.
        for first in range(0, len(members), self.most):
            part = members[first : first + self.most]
            if self.survivors(pivot, int(sample[0]), part):
                return self._ranked(pivot, members, part)
        return buckets

    def confirm(self, tree: Tree) -> None:
        """Raise ValueError unless the tree predicts some more probes, with as many units as can be counted."""

        def add(*terms: float) -> float:
            large = [term for term in terms if abs(term) == self.mask]
            return sum(large) if large else sum(terms)

        for _ in range(_CONFIRMING_PROBES if self.n > 2 else 0):
            pivot, other = (int(leaf) for leaf in self.random.choice(self.n, 2, replace=False))
            units = self.random.choice(self.n, min(self.n, self.most), replace=False)
            leaves = [0.0] * self.n
            for leaf in units.tolist():
                leaves[leaf] = 1.0
            leaves[pivot], leaves[other] = self.mask, -self.mask
            if self.survivors(pivot, other, units) != tree.evaluate(leaves, add):
                raise ValueError(
                    f"function: its answers fit no tree (leaves {pivot} and {other} disagree with the tree found); it "
                    "is not a sum in a fixed order, or unit, mask or largest_count do not suit it"
                )
