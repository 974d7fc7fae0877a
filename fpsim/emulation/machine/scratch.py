"""Memory that every step needs again: new to a process, it costs several times what is written to it."""

from __future__ import annotations

from typing import Any

import numpy as np

_SMALL = 2**14  # bytes, of which an allocator keeps enough by itself


class Scratch:
    """Uninitialized arrays for the time of a step; of those that it took, the next one finds as many."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, Any], list[np.ndarray]] = {}
        self._taken: list[np.ndarray] = []

    def take(self, size: int, dtype: Any) -> np.ndarray:
        """(size,), the caller's alone until the step ends."""
        free = self._free.get((size, dtype))
        array = free.pop() if free else np.empty(size, dtype)
        if array.nbytes >= _SMALL:
            self._taken.append(array)
        return array

    def end_step(self) -> None:
        """Whatever was taken is free; what was free already is let go."""
        self._free = {}
        for array in self._taken:
            self._free.setdefault((array.size, array.dtype.type), []).append(array)
        self._taken = []
