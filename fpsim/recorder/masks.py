"""In which order a machine's products add: for every two terms, how many others are added after those two have met.

One term is a large M, another -M, the rest are small ones. What is added to M or -M before the two meet is lost, what is
added afterwards survives ("FPRev: revealing floating-point accumulation order"). The table of survivors for every two terms
determines the tree of additions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .calls import CallRecorder
from .environment import flag_set, product_flags
from .operands import HALVES
from .suite import SHAPES, Probe

#: Of a and b: the large value, the small one; and how many small products the output counts exactly. In fp16 no factor is
#: subnormal, and 2^15 takes in 2048 times 2^-24 whether sums are in fp16 or in fp32.
_VALUES = {
    torch.float16: ((2.0**15, 1.0), (2.0**-14, 2.0**-10), 2048),
    torch.bfloat16: ((2.0**100, 1.0), (1.0, 1.0), 256),
    torch.float32: ((2.0**100, 1.0), (1.0, 1.0), 2**24),
}
DTYPES = (*HALVES, torch.float32)
_CHECKED = 64  # pairs that are probed again, also in other elements
_FEW = 8  # of them are probed in each of those elements
_MOST_ORDERS = 16

#: What multiplies an (m, k) matrix and a (k, n) one, by name; vectors are matrices with one row or column.
MULTIPLY: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "aten.mm.default": torch.mm,
    "aten.mv.default": lambda a, b: torch.mv(a, b[:, 0]),
    "aten.dot.default": lambda a, b: torch.dot(a[0], b[:, 0]),
}
_VECTORS = {"aten.mv.default": (33, 100, 1), "aten.dot.default": (1, 100, 1)}


def masks(probe: Probe) -> None:
    """The section: every shape of the products in each dtype and under each flag."""
    for flag, value in product_flags(probe.device):
        with flag_set(flag, value):
            for dtype in DTYPES:
                for shape in SHAPES:
                    record_masks(probe.recorder, probe.device, "aten.mm.default", dtype, shape)
                for op, shape in _VECTORS.items():
                    record_masks(probe.recorder, probe.device, op, dtype, shape)


def record_masks(
    recorder: CallRecorder, device: torch.device, op: str, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    """Add the survivors of every two terms of the elements of an (m, k) by (k, n) product to the bundle.

    They are one table where all elements gave the same for some pairs, else one for each of the orders and, for every element,
    the number of its own. What gives no number of units, or no tree, is noted as skipped: such a machine adds in an order that
    depends on the values, or rounds neither to nearest nor toward zero.
    """
    record: dict[str, Any] = {
        "kind": "masks", "section": "masks", "op": op, "dtype": str(dtype).removeprefix("torch."),
        "shape": list(shape), "flags": recorder.changed_flags(),
    }  # fmt: skip
    bundle, (m, k, n) = recorder.bundle, shape
    try:
        orders, tables = _orders(_Counter(device, op, dtype, shape), m, k, n)
    except ValueError as error:
        bundle.records.append(record | {"skipped": str(error)})
        return
    record["alike"] = len(tables) == 1
    record["survivors"], *others = (bundle.add_tensor("uint16", (k, k), (k, 1), table.reshape(-1)) for table in tables)
    if others:
        record["others"] = others
        record["orders"] = bundle.add_tensor("uint8", (m, n), (n, 1), orders.reshape(-1))
    bundle.records.append(record)


def _orders(count: _Counter, m: int, k: int, n: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Each element's number of an order (m, n), and the table of each order. Raises ValueError where there is none."""
    pairs = []
    for number in range(_CHECKED):
        i, j = np.random.default_rng(number).choice(k, 2, replace=False).tolist()
        pairs.append((i, j))
    first = [count(i, j, 0, 0) for i, j in pairs]
    orders, elements = np.zeros((m, n), np.uint8), [(0, 0)]
    if not all(_is_alike(count, pairs, first, number, place) for number, place in enumerate(_others(m, n))):
        numbers = {tuple(first): 0}
        for row, column in np.ndindex(m, n):
            counts = tuple(count(i, j, row, column) for i, j in pairs)
            if counts not in numbers:
                elements.append((row, column))
            orders[row, column] = numbers.setdefault(counts, len(numbers))
            if len(numbers) > _MOST_ORDERS:
                raise ValueError(f"the elements add in more than {_MOST_ORDERS} orders")
    tables = [_table(count, k, *element) for element in elements]
    for table, element in zip(tables, elements, strict=True):
        for i, j in pairs:
            if count(i, j, *element) != int(table[i, j]):
                raise ValueError(f"terms {i} and {j} meet elsewhere than the tree of the other terms says")
    return orders, tables


def _others(m: int, n: int) -> list[tuple[int, int]]:
    """Elements that kernels treat apart, those at the edges, and some at random."""
    random = np.random.default_rng(0)
    edges = [(row, column) for row, column in np.ndindex(m, n) if row in (0, m - 1) or column in (0, n - 1)]
    return edges + [(int(random.integers(m)), int(random.integers(n))) for _ in range(_CHECKED)]


def _is_alike(count: _Counter, pairs: list[tuple[int, int]], first: list[int], number: int, place: tuple[int, int]) -> bool:
    """Whether an element gives what the first one gave, for a few of the pairs: others for every number."""
    few = [(number * _FEW + step) % len(pairs) for step in range(_FEW)]
    return all(count(*pairs[which], *place) == first[which] for which in few)


def _table(count: _Counter, k: int, row: int, column: int) -> np.ndarray:
    """The survivors of every two terms of an element.

    Terms that meet a pivot at different nodes meet each other at the outer one, so only those that meet it at the same node
    need be probed against each other.
    """
    table = np.zeros((k, k), np.uint16)
    agenda = [np.arange(k)]
    while agenda:
        pivot, *others = agenda.pop().tolist()
        survivors = np.array([count(pivot, other, row, column) for other in others], np.uint16)
        rest = np.array(others, np.int64)
        table[pivot, rest] = table[rest, pivot] = survivors
        table[np.ix_(rest, rest)] = np.minimum.outer(survivors, survivors)
        agenda.extend(group for value in np.unique(survivors) if len(group := rest[survivors == value]) > 1)
    return table


class _Counter:
    """The product of one shape, with what a probe of it needs."""

    def __init__(self, device: torch.device, op: str, dtype: torch.dtype, shape: tuple[int, int, int]):
        m, k, n = shape
        self.multiply, self.result = MULTIPLY[op], (m, n)
        self.large, self.small, self.most = _VALUES[dtype]
        self.a = torch.zeros(m, k, device=device, dtype=dtype)
        self.b = torch.zeros(k, n, device=device, dtype=dtype)
        self.k = k

    def __call__(self, i: int, j: int, row: int, column: int) -> int:
        """How many of the other terms are added after i and j have met, in that element."""
        others = [place for place in range(self.k) if place not in (i, j)]
        starts = range(0, len(others), self.most)
        return sum(self._survivors(i, j, others[first : first + self.most], row, column) for first in starts)

    def _survivors(self, i: int, j: int, units: list[int], row: int, column: int) -> int:
        a, b = self.a, self.b
        a.zero_()
        b.zero_()
        a[row, units], b[units, column] = self.small
        a[row, i], a[row, j] = self.large[0], -self.large[0]
        b[i, column] = b[j, column] = self.large[1]
        left = float(self.multiply(a, b).reshape(self.result)[row, column]) / (self.small[0] * self.small[1])
        if left != int(left) or not 0 <= left <= len(units):
            raise ValueError(f"terms {i} and {j}: {left} of {len(units)} units survive, which no order of additions gives")
        return int(left)
