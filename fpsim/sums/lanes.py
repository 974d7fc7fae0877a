"""Sums of products lane by lane: where every sum has factors of its own, many side by side in one call of a kernel.

Sums lie in slots of LANES, those of each block row by row. Where their factors lie say tables of rows and leaves, so that the
taps of a convolution are read in place, over its groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from fpsim.accumulation.kinds import KAHAN, NEUMAIER, PARTS, TREE
from fpsim.backend import numba as kernels, threads
from fpsim.backend.numba.observed import NOTHING
from fpsim.numbers.rounding import Rounding
from fpsim.sums.plan import Plan, plan
from fpsim.sums.schemes import Scheme
from fpsim.sums.task import Sum

LANES = 16  # as of the kernels' slots
_NO_HASHES = np.zeros(1, np.uint32)


@dataclass(frozen=True)
class Factor:
    """One factor of every sum: `values[block, ...]` is flat from `rows[row] + steps[leaf]` on for all lanes of a slot.

    In numbers; every block has as many. The left factor's last block is zeros.
    """

    values: np.ndarray
    rows: np.ndarray
    steps: np.ndarray

    @property
    def stride(self) -> int:
        """From block to block."""
        return self.values.size // len(self.values)


@dataclass(frozen=True)
class Numbers:
    """The number of each sum, which its draws depend on: first + block * stride + rows[row] + lane * step."""

    rows: np.ndarray
    stride: int
    step: int
    first: int


def serves(task: Sum, leaves: int) -> bool:
    """Whether there is a kernel: for trees of two-term nodes, for parts of them and for compensated sums."""
    kind = task.accumulator.kind
    return kind in (PARTS, KAHAN, NEUMAIER) or (kind is TREE and plan(task, leaves).is_binary)


@dataclass(frozen=True)
class LaneSums:
    """The sums of a plan, (blocks, rows, LANES): of which factors, how they are numbered for draws and by which key.

    `count` is how many they are, without those that fill the last block.
    """

    planned: Plan
    left: Factor
    right: Factor
    numbers: Numbers
    key: int
    count: int

    @property
    def tiles(self) -> np.ndarray:
        """The numbers of all tiles of slots."""
        return np.arange(-(-self.slots // kernels.lanes.SLOTS))

    def made(self) -> Iterator[np.ndarray]:
        """The sums for each program of the plan, in the carrier."""
        planned, tiles = self.planned, self.tiles
        flags = planned.flags(inf, 1, lambda: (inf, 0.0))  # the fullest: another choice would be another kernel to compile
        for lines in planned.programs:
            out, overflowed, _ = self.run(planned.scheme, flags, lines, tiles)
            beyond = np.flatnonzero(overflowed.any(axis=1))
            if beyond.size:
                out[beyond], *_ = self.run(planned.overflow, planned.overflow.flags, lines, tiles[beyond])
            yield self.shaped(out)

    @property
    def slots(self) -> int:
        return len(self.right.values) * self.right.rows.size

    def shaped(self, tiles: np.ndarray) -> np.ndarray:
        """(blocks, rows, LANES)."""
        return tiles.reshape(-1, LANES)[: self.slots].reshape(len(self.right.values), -1, LANES)

    def run(
        self, scheme: Scheme, flags: int, lines: np.ndarray, tiles: np.ndarray, observed: int = NOTHING, tallies: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tile, sums) by one kernel, 1 for the tiles that reached its limit, and `tallies` vectors of what is observed."""
        task, dtype = self.planned.task, scheme.dtype
        kind, vector = task.accumulator.kind, 64 // dtype.itemsize
        compensation = kind.name if kind in (KAHAN, NEUMAIER) else ""
        function = kernels.lanes.make_lanes(scheme.element, task.rounding.code, flags, observed, compensation)
        left, right = (replace(x, values=x.values.astype(dtype, copy=False)) for x in (self.left, self.right))
        parts = LANES // vector
        vector_tiles = (tiles[:, None] * parts + np.arange(parts)).reshape(-1)  # tiles of vectors
        out = np.empty((vector_tiles.size, kernels.lanes.SLOTS, vector), dtype)
        hashes = _NO_HASHES
        if task.rounding is Rounding.STOCHASTIC:
            hashes, numbers = np.empty(out.shape, np.uint32), self.numbers
            kernels.lanes.hash_elements(
                numbers.rows + numbers.first, numbers.stride, numbers.step, parts, vector_tiles, np.uint64(self.key), hashes
            )
        overflowed, tallied = np.zeros(vector_tiles.size, np.uint8), np.empty(vector_tiles.size * tallies * vector, dtype)
        limit, size = dtype.type(scheme.limit), kernels.lanes.SLOTS * vector
        zeros = left.values.size - left.stride

        def some(first: int, last: int) -> None:
            stack = np.empty(self.planned.depth * size, dtype)
            function(
                left.values.reshape(-1), right.values.reshape(-1), out.reshape(-1), left.rows, right.rows, left.steps,
                right.steps, left.stride, right.stride, self.slots, zeros, vector_tiles, first, last, lines, stack, scheme.row,
                hashes.reshape(-1), limit, overflowed, tallied,
            )  # fmt: skip

        threads.run(some, threads.parts(vector_tiles.size, out.size * max(1, self.planned.leaves)))
        return out.reshape(tiles.size, -1), overflowed.reshape(tiles.size, -1), tallied
