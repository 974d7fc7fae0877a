"""Tensors that observers look at: which hold emulated numbers, and their magnitudes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

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


class Magnitudes(NamedTuple):
    """Of a tensor: the largest finite magnitude (0 without one), the smallest nonzero one (infinity), and how many are what."""

    largest: float
    smallest: float
    zeros: int
    subnormals: int
    infinite: int
    nan: int

    @property
    def nonfinite(self) -> int:
        return self.infinite + self.nan


def _side_by_side(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, or a copy of it, whose elements lie side by side in float32."""
    if tensor.dtype is not _FLOAT32:
        tensor = tensor.to(_FLOAT32)
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return tensor if tensor.is_contiguous() or marks.is_dense(tensor) else tensor.contiguous()


@lru_cache(maxsize=256)
def _constants(smallest_normal: float) -> np.ndarray:
    return np.array([0, 1, 0x7FFFFFFF, code_of(np.inf), code_of(smallest_normal)], np.int32)


def survey(tensor: torch.Tensor, smallest_normal: float) -> Magnitudes:
    """The magnitudes of a floating-point tensor whose numbers below that are subnormal."""
    tensor = _side_by_side(tensor)
    return Magnitudes(*magnitudes.survey(marks.pointer_to(tensor), tensor.numel(), _constants(smallest_normal)))


class Survey:
    """The magnitudes of several such tensors."""

    __slots__ = ("_constants", "_found")

    def __init__(self, smallest_normal: float):
        self._constants, self._found = _constants(smallest_normal), np.array([0, np.inf, 0, 0, 0, 0])

    def add(self, tensor: torch.Tensor) -> int:
        """Look at another one; how many of its numbers are not finite."""
        tensor = _side_by_side(tensor)
        nonfinite: int = magnitudes.add_survey(marks.pointer_to(tensor), tensor.numel(), self._constants, self._found)
        return nonfinite

    @property
    def magnitudes(self) -> Magnitudes:
        largest, smallest, *counts = self._found.tolist()
        return Magnitudes(largest, smallest, *map(int, counts))


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers of a floating-point tensor are finite in its dtype."""
    if tensor.dtype is torch.float64:
        return bool(tensor.isfinite().all())  # float32 would make an infinity of a large one
    return not survey(tensor, 0.0).nonfinite


def holds_emulated(machine: Any, tensor: torch.Tensor) -> bool:
    """Whether a result holds numbers of an emulated format: not a step count, nor what stays wide beside the results."""
    if not machine.emulates(tensor.dtype):
        return False
    return tensor.dtype is not _FLOAT32 or marks.tag_on(tensor) not in (None, marks.EXEMPT)
