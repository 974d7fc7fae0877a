"""What looks into sums of products while they are made. Their bits are the same with and without."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding
from fpsim.numbers.system import NumberSystem
from fpsim.sums.columns import Columns
from fpsim.sums.lanes import LaneSums
from fpsim.sums.task import Draws, Sum


class SumObserver(Protocol):
    """Told of the roundings of a sum in parts; `Counters` is one.

    What a kernel keeps for it has a number in `backend/numba/observed.py`.

    is_whole : whether `rounded` is called; else additions alone are told of
    """

    @property
    def is_whole(self) -> bool: ...

    def product(self, task: Sum, a: np.ndarray, b: np.ndarray, draws: Draws) -> np.ndarray:
        """The accumulated a @ b of a tree or of parts: a new array of values of `task.held`."""

    def products(self, task: Sum, a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
        """`product` of each pair of (n, i, k) and (n, k, j) in one call; None where they are told one by one."""

    def lanes(self, sums: LaneSums) -> np.ndarray:
        """The accumulated sums of a tree, lane by lane."""

    def columns(self, sums: Columns) -> np.ndarray | None:
        """Chains down columns, a flat array; None where they are told of as products."""

    def addition(
        self, x: np.ndarray, y: np.ndarray, target: Format, rounding: Rounding, draws: Draws, node: int
    ) -> np.ndarray:
        """x + y rounded, y being added to a sum that is there: a new array."""

    def rounded(
        self, x: np.ndarray, result: np.ndarray, system: NumberSystem, rounding: Rounding, key: int, first: int
    ) -> None:
        """x was rounded to a system."""
