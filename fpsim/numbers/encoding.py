"""Codes of a format's values, and the places between them; nothing is checked but what is said.

A code is sign, exponent field and stored significand (IEEE 754-2019, section 3.4). Without its sign a finite value's
code is its *index*: how many values of the format lie between it and zero.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fpsim.numbers.binary import BinaryFloat
from fpsim.numbers.rounding import Rounding
from fpsim.numbers.system import Field, NumberSystem

_BLOCK = 1 << 16


def code_dtype(fmt: NumberSystem) -> np.dtype:
    """The smallest unsigned integer type that holds a code of the format."""
    return np.dtype(next(f"u{size}" for size in (1, 2, 4, 8) if fmt.bits <= 8 * size))


def _signs(fmt: BinaryFloat) -> int:
    return 1 << (fmt.bits - 1) if fmt.signed else 0


def infinity_index(fmt: BinaryFloat) -> int:
    """The code of +infinity: the exponent field all ones."""
    return (2**fmt.exponent_bits - 1) << (fmt.precision - 1)


def nan_code(fmt: BinaryFloat) -> int | None:
    """The canonical code of NaN (positive and quiet), None where there is no code for it."""
    stored = fmt.precision - 1
    match fmt.specials:
        case "ieee":
            return infinity_index(fmt) | 1 << (stored - 1) if stored else None
        case "fn":
            return 2 ** (fmt.bits - int(fmt.signed)) - 1
        case "fnuz":
            return _signs(fmt)
    return None


def _index(magnitude: np.ndarray, fmt: BinaryFloat) -> np.ndarray:
    """The codes of finite non-negative float64 values of the format."""
    p, emin = fmt.precision, fmt.emin
    exponent = np.maximum(np.frexp(np.where(magnitude == 0, 2.0**emin, magnitude))[1] - 1, emin)
    count = np.ldexp(magnitude, p - 1 - exponent).astype(np.int64)  # exact: a value is a multiple of its ulp
    # A normal value's count holds the implicit bit, which is the first step of the exponent field.
    return (exponent.astype(np.int64) - emin << np.int64(p - 1)) + (count if fmt.has_zero else 0)


def _value(index: np.ndarray, fmt: BinaryFloat) -> np.ndarray:
    """The float64 values of codes of finite non-negative values."""
    stored = fmt.precision - 1
    field, fraction = index >> np.int64(stored), index & np.int64(2**stored - 1)
    if not fmt.has_zero:
        return np.ldexp(1.0, (field + fmt.emin).astype(np.int32))
    count = fraction + np.where(field > 0, np.int64(2**stored), np.int64(0))
    return np.ldexp(count.astype(np.float64), (np.maximum(field, 1) - 1 + fmt.emin - stored).astype(np.int32))


@lru_cache(maxsize=256)
def _all_values(fmt: BinaryFloat) -> BinaryFloat:
    """The format whose rounding leaves every value that has a code as it is."""
    return fmt.replace(flush=None, saturate=fmt.specials == "finite")


def first_non_value(array: np.ndarray, fmt: NumberSystem) -> tuple[int, ...] | None:
    """The index of the first element, in row-major order, that no code of the format stands for; None if there is none.

    NaN counts as a value, also where a format has no code for it, and -0 as the zero of a format that has only one.
    Subnormal values have codes whether or not results are flushed.
    """
    info = np.finfo(array.dtype)
    held = _all_values(fmt) if isinstance(fmt, BinaryFloat) else fmt
    whole = (info.nmant + 1, info.minexp, info.maxexp)
    if isinstance(held, BinaryFloat) and held.has_infinity and (held.precision, held.emin, held.emax + 1) == whole:
        return None  # the dtype has no other values
    flat = array.reshape(-1)
    rounded = np.empty(min(flat.size, _BLOCK), array.dtype)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        into = rounded[: block.size]
        held.round_into(block, into, Rounding.TOWARD_ZERO)
        wrong = into != block
        if wrong.any():
            wrong &= block == block
            if wrong.any():
                return tuple(int(i) for i in np.unravel_index(start + int(wrong.argmax()), array.shape))
    return None


def require_values(array: np.ndarray, fmt: NumberSystem, name: str) -> None:
    """Raise ValueError, naming the first element, unless every one is a value of the format."""
    where = first_non_value(array, fmt)
    if where is not None:
        raise no_value(array, where, fmt, name)


def no_value(array: np.ndarray, where: tuple[int, ...], fmt: NumberSystem, name: str) -> ValueError:
    """What is raised for an element that is no value of the format."""
    return ValueError(f"{name}{list(where) or ''} = {float(array[where])!r} is no value of {fmt.name}; round it first")


class CodedFloat(BinaryFloat):
    """A binary float format's codes, and what their order says."""

    def encode(self, values: np.ndarray) -> np.ndarray:
        wide = values.reshape(-1)
        is_nan = np.isnan(wide)
        finite = np.where(np.isfinite(wide), np.abs(wide), 0.0 if self.has_zero else 1.0)
        code = _index(finite, self)
        code[np.isinf(wide)] = infinity_index(self)
        code = code.view(np.uint64)
        negative = np.signbit(wide) & (self.has_negative_zero | (wide != 0))
        code[negative] |= np.uint64(_signs(self))
        if is_nan.any():
            nan = nan_code(self)
            if nan is None:
                raise ValueError(f"x holds a NaN, for which {self.name} has no code")
            code[is_nan] = nan
        return code.reshape(values.shape)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        signs = np.uint64(_signs(self))
        index = (codes & ~signs if self.signed else codes).view(np.int64)
        largest = int(_index(np.array([self.max_finite]), self)[0])
        value = _value(np.minimum(index, largest), self)
        value[index > largest] = np.nan
        if self.has_infinity:
            value[index == infinity_index(self)] = np.inf
        negative = (codes & signs) != 0
        np.negative(value, out=value, where=negative)
        if self.specials == "fnuz":
            value[negative & (index == 0)] = np.nan
        return value

    def ulp(self, x: np.ndarray) -> np.ndarray:
        """2^(max(e, emin) - p + 1) of float64 numbers."""
        finite = np.isfinite(x)
        exponent = np.frexp(np.where(finite & (x != 0), x, 2.0**self.emin))[1] - 1
        return np.where(finite, np.ldexp(1.0, np.maximum(exponent, self.emin) - self.precision + 1), np.abs(x))

    def next(self, x: np.ndarray, direction: int) -> np.ndarray:
        wide = direction * x
        negative = (wide < 0) if self.signed else np.full(wide.shape, direction < 0)
        magnitude = np.where(np.isfinite(wide), np.abs(wide), 1.0 if not self.has_zero else 0.0)
        largest = int(_index(np.array([self.max_finite]), self)[0])
        index = np.where(np.isinf(wide), largest + 1, _index(magnitude, self)) + np.where(negative, -1, 1)
        if self.flush:
            least = int(_index(np.array([self.min_normal]), self)[0])
            index = np.where((index > 0) & (index < least), np.where(negative, 0, least), index)
        value = _value(np.clip(index, 0, largest), self)
        beyond = self.max_finite if self.saturate else np.inf if self.has_infinity else np.nan
        value = np.where(index > largest, beyond, value)
        value = np.where(negative, -value, value)
        value = np.where(np.isnan(wide) | (np.isinf(wide) & ~negative), wide, value)
        value = direction * value
        if not self.has_negative_zero:
            value = value + 0.0
        return np.asarray(value)

    def fields(self, code: int) -> list[Field]:
        """Sign, exponent and significand, with what they stand for in a finite number."""
        digits = f"{code:0{self.bits}b}"
        exponent_at, significand_at = int(self.signed), int(self.signed) + self.exponent_bits
        sign, exponent, significand = digits[:exponent_at], digits[exponent_at:significand_at], digits[significand_at:]
        readings = ["", "", ""]
        if np.isfinite(self.decode(np.array([code], np.uint64))[0]):
            field = int(exponent, 2)
            subnormal = field == 0 and self.has_zero
            power = f"2^{self.emin} = 2^emin" if subnormal else f"2^({field} - {self.bias}) = 2^{field - self.bias}"
            kind = ("   (zero)" if int(digits[exponent_at:], 2) == 0 else "   (subnormal)") if subnormal else ""
            written = f"{int(not subnormal)}.{significand}" if self.bits <= 40 else ""
            readings = ["-" if sign == "1" else "+", power, f"{written}{kind}"]
        fields = zip(("sign", "exponent", "significand"), (sign, exponent, significand), readings, strict=True)
        return [Field(*field) for field in fields if field[1]]
