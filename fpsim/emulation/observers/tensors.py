"""Tensors that observers look at: which hold emulated numbers, and their magnitudes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fpsim.backend.numba import magnitudes
from fpsim.emulation.machine import marks

_FLOAT32 = torch.float32


def codes_of(tensor: torch.Tensor) -> np.ndarray:
    """The codes of the elements as float32 (exactly; int32), one after another as they lie in memory where that is dense."""
    tensor = tensor.detach()
    if tensor.dtype is not _FLOAT32:
        tensor = tensor.to(_FLOAT32)
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    if not tensor.is_contiguous() and marks.is_dense(tensor):
        tensor = tensor.as_strided((tensor.numel(),), (1,))
    array: np.ndarray = marks.array_of(tensor)
    return np.ascontiguousarray(array).reshape(-1).view(np.int32)


def code_of(value: float) -> int:
    """The code of a nonnegative number in float32."""
    return int(np.float32(value).view(np.int32))


@lru_cache(maxsize=256)
def _constants(smallest_normal: float) -> np.ndarray:
    infinity = code_of(np.inf)
    return np.array([0, 1, 0x7FFFFFFF, infinity, code_of(smallest_normal)], np.int32)


_EXTREMES = np.array([0, code_of(np.inf)], np.int32)


class Survey:
    """Magnitudes of many tensors of one format, added up."""

    __slots__ = ("_constants", "_extremes", "counts")

    def __init__(self, smallest_normal: float):
        self._constants = _constants(smallest_normal)
        self._extremes = _EXTREMES.copy()
        self.counts = np.zeros(4, np.int64)

    def add(self, tensor: torch.Tensor) -> int:
        """Look at a tensor; returns how many of its elements are not finite."""
        before = int(self.counts[magnitudes.INFINITE] + self.counts[magnitudes.NAN])
        magnitudes.survey(codes_of(tensor), self._constants, self._extremes, self.counts)
        return int(self.counts[magnitudes.INFINITE] + self.counts[magnitudes.NAN]) - before

    @property
    def extremes(self) -> tuple[float, float]:
        """The largest finite magnitude (0 without one) and the smallest nonzero one (infinity)."""
        largest, smallest = self._extremes.view(np.float32).tolist()
        return largest, smallest

    @property
    def subnormals(self) -> int:
        return int(self.counts[magnitudes.SUBNORMALS])


def holds_emulated(machine: Any, tensor: torch.Tensor) -> bool:
    """Whether a result holds numbers of an emulated format: not a step count, nor what stays wide beside the results."""
    if not machine.emulates(tensor.dtype):
        return False
    return tensor.dtype is not _FLOAT32 or marks.tag_on(tensor) not in (None, marks.EXEMPT)
