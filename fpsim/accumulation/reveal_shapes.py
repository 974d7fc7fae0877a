"""Which elements of a product's shapes are added in one order: whether a library's product is invariant to the batch.

The first element of a shape is revealed by probes. What it was asked and answered is then asked of all elements at once, every
row of the left factor holding the same leaves: those that answer alike have its tree, for a tree is what the answers determine.
The first of the others is revealed next, until every element has a tree; shapes of as many terms share what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fpsim.accumulation.orders import Order, blocked, lanes, pairwise, sequential, split
from fpsim.accumulation.reveal import reveal
from fpsim.accumulation.trees import Tree

Shape = tuple[int, int, int]  # rows, terms, columns


@dataclass
class _Revealed:
    """One tree, and the probes that it was revealed by."""

    tree: Tree
    probes: list[tuple[np.ndarray, float]] = field(repr=False)


@dataclass(frozen=True)
class ShapeOrders:
    """The trees of all elements of some shapes.

    trees    the different trees, in the order in which they were met
    members  for each shape a (rows, columns) array: which of the trees each element has
    """

    trees: tuple[Tree, ...]
    members: dict[Shape, np.ndarray]

    def share(self, *shapes: Shape) -> bool:
        """Whether all elements of these shapes (left out: of all) have one tree. Raises KeyError for an unknown shape."""
        kinds = {int(kind) for shape in shapes or self.members for kind in np.unique(self.members[shape])}
        return len(kinds) <= 1

    @property
    def groups(self) -> list[list[Shape]]:
        """The shapes whose elements all have one tree, by that tree; a shape of several trees is in none."""
        by_tree: dict[int, list[Shape]] = {}
        for shape, kinds in self.members.items():
            if kinds.size and (kinds == kinds.flat[0]).all():
                by_tree.setdefault(int(kinds.flat[0]), []).append(shape)
        return list(by_tree.values())

    @property
    def is_batch_invariant(self) -> bool:
        """Whether shapes that differ in rows alone share their trees, column by column, and all rows of each do."""
        columns: dict[tuple[int, int], list[np.ndarray]] = {}
        for (_, terms, width), kinds in self.members.items():
            columns.setdefault((terms, width), []).extend(kinds)
        return all((row == rows[0]).all() for rows in columns.values() for row in rows)

    def __str__(self) -> str:
        """A table of the shapes, and a line for each tree."""
        rows = [("rows x terms x columns", "elements", "order")]
        for shape, kinds in self.members.items():
            text = " x ".join(map(str, shape))
            for kind in np.unique(kinds):
                rows.append((text, f"{np.count_nonzero(kinds == kind)} of {kinds.size}", _letter(int(kind))))
                text = ""
        widths = [max(len(row[place]) for row in rows) for place in range(3)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, "", *(f"{_letter(kind)}: {describe(tree)}" for kind, tree in enumerate(self.trees))])


def _letter(kind: int) -> str:
    return (chr(ord("A") + kind // 26 - 1) if kind >= 26 else "") + chr(ord("A") + kind % 26)


def _named(n: int) -> Iterable[Order]:
    """Orders that trees of n leaves are looked up among."""
    sizes = [2**power for power in range(1, max(1, n.bit_length()))]
    yield from (sequential, pairwise)
    yield from (lanes(size) for size in sizes)
    yield from (lanes(size, "pairwise") for size in sizes)
    yield from (split(count) for count in range(2, min(n, 64) + 1))
    yield from (blocked(size) for size in sizes)


def describe(tree: Tree) -> str:
    """The order that has this tree, where one is known by name, and how many terms it adds; else the tree's height."""
    for order in _named(tree.leaves):
        if order(tree.leaves).canonical() == tree:
            return f"{order} over {tree.leaves} terms"
    return f"a tree of {tree.leaves} terms and height {tree.height}"


def reveal_shapes(
    matmul: Callable[[Any, Any], Any],
    shapes: Iterable[Shape],
    *,
    dtype: Any = np.float32,
    convert: Callable[[np.ndarray], Any] = np.asarray,
    **settings: Any,
) -> ShapeOrders:
    """In which order a black-box product adds the terms of every element, shape by shape; `print` shows a table.

    matmul   maps `convert`ed (rows, terms) and (terms, columns) matrices to their product; called about n log2(n) times a
             tree and shape, n the number of terms
    shapes   (rows, terms, columns), such as the batch sizes of one layer
    dtype, settings   as for `reveal` (`unit`, `mask`, `largest_count`)
    convert  makes the matrices what the library takes, e.g. ``lambda x: torch.from_numpy(x).bfloat16()``

    An order may depend on the shape and the place, not on values. Raises ValueError for a shape without elements or terms, and
    where `reveal` does, naming the shape and the element.
    """
    trees: list[Tree] = []
    revealed: dict[int, list[_Revealed]] = {}
    members = {}
    for rows, terms, columns in shapes:
        if min(rows, terms, columns) < 1:
            raise ValueError(f"shapes: ({rows}, {terms}, {columns}) has no elements or no terms")
        ones = convert(np.ones((terms, columns), dtype))
        kinds = np.full((rows, columns), -1)

        def answers(leaves: np.ndarray, rows: int = rows, ones: Any = ones) -> np.ndarray:
            left = np.ascontiguousarray(np.broadcast_to(leaves, (rows, len(leaves))))
            return np.asarray(_numbers(matmul(convert(left), ones)), np.float64)

        of_terms = revealed.setdefault(terms, [])
        for each in of_terms:
            _enter(kinds, each, trees.index(each.tree), answers)
        while (kinds < 0).any():
            row, column = (int(place) for place in np.argwhere(kinds < 0)[0])
            try:
                each = _revealed(answers, (row, column), terms, dtype, settings)
            except ValueError as error:
                raise ValueError(f"element {(row, column)} of {rows} x {terms} x {columns}: {error}") from None
            if each.tree not in trees:
                trees.append(each.tree)
            of_terms.append(each)
            _enter(kinds, each, trees.index(each.tree), answers)
            kinds[row, column] = trees.index(each.tree)
        members[rows, terms, columns] = kinds
    return ShapeOrders(tuple(trees), members)


def _numbers(product: Any) -> Any:
    return product.double().numpy() if hasattr(product, "double") else product


def _revealed(
    answers: Callable[[np.ndarray], np.ndarray], element: tuple[int, int], terms: int, dtype: Any, settings: dict[str, Any]
) -> _Revealed:
    probes: list[tuple[np.ndarray, float]] = []

    def asked(leaves: np.ndarray) -> float:
        answer = float(answers(leaves)[element])
        probes.append((leaves, answer))
        return answer

    return _Revealed(reveal(asked, terms, dtype=dtype, **settings), probes)


def _enter(kinds: np.ndarray, each: _Revealed, kind: int, answers: Callable[[np.ndarray], np.ndarray]) -> None:
    """Give the elements that answer every probe as this tree does its number."""
    alike = kinds < 0
    for leaves, answer in each.probes:
        if not alike.any():
            return
        alike &= answers(leaves) == answer
    kinds[alike] = kind
