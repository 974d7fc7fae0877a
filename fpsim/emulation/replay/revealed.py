"""The orders in which another machine's products add, as the masks of a bundle tell them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fpsim.accumulation import Tree
from fpsim.accumulation.reveal import tree_of_survivors
from fpsim.emulation.replay.calls import Call, written_flags
from fpsim.recorder.bundle import Bundle

_MOST_ELEMENTS = 1 << 24  # of a product whose elements all add in one order
_MOST_ORDERS = 256  # their numbers are bytes
_MOST_TERMS = 1 << 13


@dataclass(frozen=True)
class Revealed:
    """One product of matrices: its shape is (m, k, n), m or n is 1 for a vector.

    trees   of additions
    orders  which of the trees is that of each element, (m, n)
    alike   whether some other elements were probed as well and agreed; False in a bundle that tells the first one's tree alone
    """

    op: str
    dtype: str
    flags: str
    shape: tuple[int, ...]
    trees: tuple[Tree, ...]
    orders: np.ndarray
    alike: bool = True

    @property
    def tree(self) -> Tree:
        """That of element (0, 0)."""
        return self.trees[0]

    def assemble(self, results: list[list[torch.Tensor]]) -> list[torch.Tensor]:
        """The product, from what each tree gives for the whole of it."""
        (first,) = results[0]
        assembled = first.clone()
        for number, (other,) in enumerate(results[1:], 1):
            place = torch.from_numpy(self.orders == number).reshape(assembled.shape)
            assembled[place] = other[place]
        return [assembled]


@dataclass
class Orders:
    """What a bundle's masks reveal, by operation, dtype, flags and shape; and why nothing where they do not."""

    found: dict[tuple[Any, ...], Revealed] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    @staticmethod
    def of_bundle(bundle: Bundle) -> Orders:
        orders = Orders()
        for record in bundle.records:
            if record["kind"] != "masks":
                continue
            name = f"{record['op'].removeprefix('aten.').partition('.')[0]} {record['dtype']} {record['shape']}"
            if "skipped" in record:
                orders.reasons.append(f"{name}: {record['skipped']}")
                continue
            try:
                revealed = _revealed(bundle, record)
            except ValueError as error:
                orders.reasons.append(f"{name}: {error}")
                continue
            if not revealed.alike:
                orders.reasons.append(f"{name}: the elements add in several orders; the tree is that of the first one")
            orders.found[revealed.op, revealed.dtype, revealed.flags, revealed.shape] = revealed
        return orders

    def of(self, call: Call) -> Revealed:
        """The order of a product of the call's shape. Raises ValueError where no masks tell it."""
        op = call.name.replace("aten.addmm.", "aten.mm.")
        revealed = self.found.get((op, call.dtype, written_flags(call.record), call.shape))
        if revealed is None:
            raise ValueError("no masks were recorded for this shape")
        return revealed


def _revealed(bundle: Bundle, record: dict[str, Any]) -> Revealed:
    """Raises ValueError for a table that fits no tree."""
    m, k, n = record["shape"]
    tables = [bundle.bits(number) for number in (record["survivors"], *record.get("others", ()))]
    if ("orders" not in record and m * n > _MOST_ELEMENTS) or len(tables) > _MOST_ORDERS or k > _MOST_TERMS:
        raise ValueError("there are more elements, orders or terms than any recorder writes")
    orders = bundle.bits(record["orders"]) if "orders" in record else np.zeros((m, n), np.uint8)
    if orders.shape != (m, n) or any(len(table) != k for table in tables) or orders.max(initial=0) >= len(tables):
        raise ValueError("the tables do not fit the shape of the product")
    trees = tuple(tree_of_survivors(table.astype(np.int64)) for table in tables)
    alike = record["alike"] or len(trees) > 1
    return Revealed(record["op"], record["dtype"], written_flags(record), (m, k, n), trees, orders, alike)
