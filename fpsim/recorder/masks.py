"""In which order a machine's products add: for every two terms, how many others are added after those two have met.

One term is a large M, another -M, the rest are small ones. What is added to M or -M before the two meet is lost, what is
added afterwards survives ("FPRev: revealing floating-point accumulation order"). The table of survivors for every two terms
determines the tree of additions.
"""

from __future__ import annotations

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
_CHECKED = 64  # pairs that are probed again, also in another element


def masks(probe: Probe) -> None:
    """The section: every shape of the products in each dtype and under each flag."""
    for flag, value in product_flags(probe.device):
        with flag_set(flag, value):
            for dtype in DTYPES:
                for m, k, n in SHAPES:
                    record_masks(probe.recorder, probe.device, dtype, m, k, n)


def record_masks(recorder: CallRecorder, device: torch.device, dtype: torch.dtype, m: int, k: int, n: int) -> None:
    """Add the survivors of every two terms of element (0, 0) of an (m, k) by (k, n) product to the bundle.

    `alike` says whether other elements gave the same for some of them. What gives no number of units, or no tree, is noted as
    skipped: such a machine adds in an order that depends on the values, or rounds neither to nearest nor toward zero.
    """
    record: dict[str, Any] = {
        "kind": "masks", "section": "masks", "op": "aten.mm.default", "dtype": str(dtype).removeprefix("torch."),
        "shape": [m, k, n], "flags": recorder.changed_flags(),
    }  # fmt: skip
    count = _Counter(device, dtype, m, k, n)
    try:
        table = _table(count, k)
        alike = True
        for number in range(_CHECKED):
            random = np.random.default_rng(number)
            i, j = random.choice(k, 2, replace=False).tolist()
            if count(i, j, 0, 0) != int(table[i, j]):
                raise ValueError(f"terms {i} and {j} meet elsewhere than the tree of the other terms says")
            row, column = (m - 1, n - 1) if number == 0 else (int(random.integers(m)), int(random.integers(n)))
            alike = alike and count(i, j, row, column) == int(table[i, j])
        record["alike"] = alike
    except ValueError as error:
        recorder.bundle.records.append(record | {"skipped": str(error)})
        return
    record["survivors"] = recorder.bundle.add_tensor("uint16", (k, k), (k, 1), table.reshape(-1))
    recorder.bundle.records.append(record)


def _table(count: _Counter, k: int) -> np.ndarray:
    """The survivors of every two terms.

    Terms that meet a pivot at different nodes meet each other at the outer one, so only those that meet it at the same node
    need be probed against each other.
    """
    table = np.zeros((k, k), np.uint16)
    agenda = [np.arange(k)]
    while agenda:
        pivot, *others = agenda.pop().tolist()
        found = np.array([count(pivot, other, 0, 0) for other in others], np.uint16)
        rest = np.array(others, np.int64)
        table[pivot, rest] = table[rest, pivot] = found
        table[np.ix_(rest, rest)] = np.minimum.outer(found, found)
        agenda.extend(group for value in np.unique(found) if len(group := rest[found == value]) > 1)
    return table


class _Counter:
    """The product of one shape, with what a probe of it needs."""

    def __init__(self, device: torch.device, dtype: torch.dtype, m: int, k: int, n: int):
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
        found = float((a @ b)[row, column]) / (self.small[0] * self.small[1])
        if found != int(found) or not 0 <= found <= len(units):
            raise ValueError(f"terms {i} and {j}: {found} of {len(units)} units survive, which no order of additions gives")
        return int(found)
