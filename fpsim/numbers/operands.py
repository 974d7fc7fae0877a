"""Checks of operands that must be values of a format, and the other arguments that array functions share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from fpsim.backend import numba as kernels, threads
from fpsim.numbers import arguments
from fpsim.numbers.carriers import rounding_constants
from fpsim.numbers.encoding import no_value
from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding, round_into


def operand(x: Any, fmt: Format, name: str) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    """A float32 or float64 array of x's values, all of them values of `fmt`, and what turns results into x's type.

    Raises ValueError naming the first element that is none (round it first), TypeError for what is no float array.
    """
    array, wrap = arguments.as_carrier(x, fmt, name)
    if not _are_values(array, fmt):
        rounded = np.empty(array.shape, array.dtype)
        round_into(array, rounded, fmt, Rounding.NEAREST_EVEN)
        same = (rounded == array) | np.isnan(array)
        place = tuple(int(index) for index in np.unravel_index(int(np.argmin(same)), array.shape))
        raise no_value(array, place, fmt, name)
    return array, wrap


def as_read(x: np.ndarray, fmt: Format) -> np.ndarray:
    """x as an operation of the format reads it: subnormal operands as zeros of their sign where it flushes inputs."""
    if not fmt.flush_inputs:
        return x
    zero = np.copysign(x.dtype.type(0), x) if fmt.has_negative_zero else x.dtype.type(0)
    return np.where(np.abs(x) < fmt.min_normal, zero, x)


@cache
def _membership(plain: bool) -> Any:
    return kernels.membership.make_are_values(plain)


def _are_values(array: np.ndarray, fmt: Format) -> bool:
    """Whether rounding changes nothing but NaNs and signs of zeros; memory that is dense is read as it lies."""
    flat = (array if array.flags.c_contiguous else _as_it_lies(array)).reshape(-1)
    row = rounding_constants(fmt, Rounding.NEAREST_EVEN, flat.dtype) if fmt.has_zero else None
    if row is None:
        rounded = np.empty_like(flat)
        round_into(flat, rounded, fmt, Rounding.NEAREST_EVEN)
        return bool(((rounded == flat) | np.isnan(flat)).all())
    function, bits = _membership(fmt.flush is None and fmt.has_negative_zero), flat.view(row.dtype)
    parts = threads.parts(flat.size, flat.size)
    if len(parts) == 1:
        return bool(function(bits, row))
    answers: list[bool] = []
    threads.run(lambda start, stop: answers.append(function(bits[start:stop], row)), parts)
    return all(answers)


def _as_it_lies(array: np.ndarray) -> np.ndarray:
    """Its elements in the order of memory where that is dense, else in their own, contiguous."""
    by_stride = array.transpose(sorted(range(array.ndim), key=lambda axis: -array.strides[axis]))
    return np.ascontiguousarray(by_stride if by_stride.flags.c_contiguous else array)


def as_array_like(x: Any, values: np.ndarray) -> Any:
    """A float64 array as a tensor where x is one."""
    if not arguments.is_tensor(x):
        return values
    import torch

    return torch.from_numpy(np.ascontiguousarray(values))
