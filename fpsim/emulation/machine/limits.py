"""Small numbers that the machine works with: counting limits of a mode, hashes, scalars in fp32."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fpsim.backend.numba import counting, rounding as kernels
from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding, round_into, rounding_constants
from fpsim.numbers.system import NumberSystem

#: The dtypes below float32 that hold values of a format of their own, and its name.
SMALL = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    **{getattr(torch, name): name for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")},
}


def instead_of(dtype: torch.dtype) -> str:
    """What to do about a tensor of a dtype that has no rules."""
    if "float4" in str(dtype):
        return 'fpsim.hardware.scaled_product has products of such numbers with their scales, kind="nvf4" or "mxf4"'
    return 'cast it to complex64 first, or use fmt="native"' if dtype is torch.complex32 else "cast it to float32 first"


_Tensor, _FLOAT32 = torch.Tensor, torch.float32
_OTHERS = frozenset((*SMALL, torch.complex64, torch.complex128))
_PLAIN = frozenset((int, float, bool, type(None)))

_SINGLE = struct.Struct("f")

#: The largest float32 number: what a model that asks for its dtype's range is told.
LARGEST = float(np.finfo(np.float32).max)


@lru_cache(maxsize=256)
def counting_limits(fmt: Format, rounding: Rounding, dtype: np.dtype) -> np.ndarray:
    """(least that overflows, greatest negative that does, largest positive that becomes 0, most negative that does)."""
    wide = np.float64
    row = rounding_constants(fmt, rounding, np.dtype(wide))
    assert row is not None
    over = [float(row[index : index + 1].view(wide)[0]) for index in (kernels.OVERFLOW_POSITIVE, kernels.OVERFLOW_NEGATIVE)]
    under = [_largest_to_zero(fmt, rounding, sign) for sign in (1.0, -1.0)]
    limits = np.array([over[0], -over[1], under[0], under[1]])
    if dtype == np.float32:  # the same sets of float32 values: thresholds move to the next float32 inwards
        with np.errstate(over="ignore"):
            narrow = limits.astype(np.float32)
            narrow[0] = np.nextafter(narrow[0], np.float32(np.inf)) if narrow[0] < limits[0] else narrow[0]
            narrow[1] = np.nextafter(narrow[1], np.float32(-np.inf)) if narrow[1] > limits[1] else narrow[1]
            narrow[2] = np.nextafter(narrow[2], np.float32(0)) if narrow[2] > limits[2] else narrow[2]
            narrow[3] = np.nextafter(narrow[3], np.float32(0)) if narrow[3] < limits[3] else narrow[3]
        return narrow
    return limits


def _largest_to_zero(fmt: Format, rounding: Rounding, sign: float) -> float:
    """The largest magnitude that rounds to zero, signed: rounding is monotone, so bisection over bits finds it.

    By the kernel that rounds a machine's float64 results, which is there already.
    """
    constants = rounding_constants(fmt, rounding, np.dtype(np.float64))
    kernel = counting.make_count_and_round(rounding.code, fmt.flush is None and fmt.has_negative_zero)
    rounded, nothing, counts = np.empty(1, np.float32), np.zeros(4), np.zeros(counting.LENGTH, np.int64)
    low, high = 0, int(np.float64(fmt.min_normal).view(np.int64))
    while high - low > 1:
        middle = (low + high) // 2
        value = np.array([sign * float(np.int64(middle).view(np.float64))])
        kernel(value, rounded, constants, nothing, counts)
        low, high = (middle, high) if rounded[0] == 0 else (low, middle)
    return sign * float(np.int64(low).view(np.float64))


def round_as_told(array: np.ndarray, fmt: NumberSystem, rounding: Rounding, key: int = 0) -> None:
    """Round float32 numbers in place; the largest there are stand for the format's own, whatever their rounding gives."""
    if not counting.reaches(array.reshape(-1), LARGEST):
        round_into(array, array, fmt, rounding, key)
        return
    told = np.abs(array) == LARGEST
    largest = np.copysign(fmt.max_finite, array[told])
    round_into(array, array, fmt, rounding, key)
    array[told] = largest


def hash_of(*parts: Any) -> int:
    """A 63-bit integer from numbers and strings, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def in_fp32(value: float) -> float:
    """The float32 nearest to a Python number."""
    if value - value != 0:
        return value
    try:
        return _SINGLE.unpack(_SINGLE.pack(value))[0]
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def has_others(values: Iterable[Any]) -> bool:
    """Whether an operation's arguments, or lists among them, hold a tensor below float32, a complex number or such a dtype."""
    for value in values:
        kind = type(value)
        if kind is _Tensor or isinstance(value, _Tensor):
            if value.dtype is not _FLOAT32 and value.dtype in _OTHERS:
                return True
        elif kind in _PLAIN:
            continue
        elif kind is list or kind is tuple:
            if value and type(value[0]) is not int and has_others(value):
                return True
        elif kind is complex or (kind is torch.dtype and value in _OTHERS):
            return True
    return False
