"""How sums over ranks are made: which rank's value meets which, as trees, and what is rounded between.

"rank-order"   rank 0 first, through the accumulator; with a format, a chain in it
"ring"         as NCCL's ring: elements lie in as many chunks of ceil(count / ranks) as there are ranks; chunk j is a chain that
               begins at rank j + 1 and ends at rank j, ranks counted around
"tree"         as NCCL's double binary tree with a rank a node: a node's value, plus its first child's sum, plus its second's;
               the first ceil(count / 2) elements by the tree of root 0, the others by the mirrored one (shifted, of odd counts)

Every addition of the last two is rounded to the tensor's format, or to the one after a colon ("ring:fp32"), and the sum once
to the tensor's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fpsim.numbers.formats import Format
from fpsim.numbers.names import get_float_format

ORDERS = ("rank-order", "ring", "tree")
Parts = list[tuple[slice, Any]]


@dataclass(frozen=True)
class AllReduce:
    """An order, and the format that partial sums are rounded to; None for the accumulator's (rank-order) or the tensor's."""

    order: str = "rank-order"
    format: Format | None = None

    @property
    def is_of_the_accumulator(self) -> bool:
        return self.order == "rank-order" and self.format is None

    def parts(self, ranks: int, count: int) -> Parts:
        """Slices of `count` elements and the nested ranks of their sums."""
        if self.order == "ring":
            size = -(-count // ranks)
            return [(slice(j * size, (j + 1) * size), self.ending_at(ranks, j)) for j in range(ranks)]
        if self.order == "tree":
            half = -(-count // 2)
            return [(slice(half), double_tree(ranks)[0]), (slice(half, None), double_tree(ranks)[1])]
        return [(slice(None), _chain(range(ranks)))]

    def ending_at(self, ranks: int, rank: int) -> Any:
        """The nested ranks of a sum that one rank alone gets: in NCCL always by a ring, which ends there."""
        return _chain(range(ranks) if self.order == "rank-order" else [(rank + 1 + i) % ranks for i in range(ranks)])

    def __str__(self) -> str:
        return self.order if self.format is None else f"{self.order}:{self.format.name}"


RANK_ORDER = AllReduce()


def get_all_reduce(text: Any) -> AllReduce:
    """What a text means. Raises ValueError, listing the orders, for an unknown one; TypeError for what is no text."""
    if isinstance(text, AllReduce):
        return text
    if not isinstance(text, str):
        raise TypeError(f"all_reduce must be a string, got {type(text).__name__}")
    order, colon, fmt = (part.strip() for part in text.partition(":"))
    if order not in ORDERS:
        raise ValueError(f"all_reduce={text!r}: known are {', '.join(ORDERS)}, each with a format after a colon or without")
    return AllReduce(order, get_float_format(fmt, "all_reduce") if colon else None)


def _chain(ranks: Any) -> Any:
    nested, *others = ranks
    for rank in others:
        nested = nested, rank
    return nested


@lru_cache(maxsize=64)
def double_tree(ranks: int) -> tuple[Any, Any]:
    """The nested ranks of both trees of so many ranks: the second has other ranks at the nodes of the first."""

    def nested(rank: int, name: Any) -> Any:
        total: Any = name(rank)
        for child in _children(ranks, rank):
            total = total, nested(child, name)
        return total

    other = (lambda rank: (rank + 1) % ranks) if ranks % 2 else (lambda rank: ranks - 1 - rank)
    return nested(0, int), nested(0, other)


def _children(ranks: int, rank: int) -> list[int]:
    """Of a node of the first tree: on both sides at half the rank's lowest bit, the second as near as it must be."""
    if rank == 0:
        return [1 << (ranks - 1).bit_length() - 1] if ranks > 1 else []
    step = (rank & -rank) >> 1
    if not step:
        return []
    first, second = rank - step, step
    while second and rank + second >= ranks:
        second >>= 1
    return [first, rank + second] if second else [first]
