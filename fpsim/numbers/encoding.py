"""Codes of a format's values, and the places between them: encode, decode, ulp, next_up, next_down.

A code is sign, exponent field and stored significand (IEEE 754-2019, section 3.4). Without its sign a finite value's
code is its *index*: how many values of the format lie between it and zero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from fpsim.numbers import arguments
from fpsim.numbers.formats import Format, get_format
from fpsim.numbers.rounding import Rounding, round_into

_BLOCK = 1 << 16
_TABLE_BITS = 16


def code_dtype(fmt: Format) -> np.dtype:
    """The smallest unsigned integer type that holds a code of the format."""
    return np.dtype(next(f"u{size}" for size in (1, 2, 4, 8) if fmt.bits <= 8 * size))


def _signs(fmt: Format) -> int:
    return 1 << (fmt.bits - 1) if fmt.signed else 0


def infinity_index(fmt: Format) -> int:
    """The code of +infinity: the exponent field all ones."""
    return (2**fmt.exponent_bits - 1) << (fmt.precision - 1)


def nan_code(fmt: Format) -> int | None:
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


def _index(magnitude: np.ndarray, fmt: Format) -> np.ndarray:
    """The codes of finite non-negative float64 values of the format."""
    p, emin = fmt.precision, fmt.emin
    exponent = np.maximum(np.frexp(np.where(magnitude == 0, 2.0**emin, magnitude))[1] - 1, emin)
    count = np.ldexp(magnitude, p - 1 - exponent).astype(np.int64)  # exact: a value is a multiple of its ulp
    # A normal value's count holds the implicit bit, which is the first step of the exponent field.
    return (exponent.astype(np.int64) - emin << np.int64(p - 1)) + (count if fmt.has_zero else 0)


def _value(index: np.ndarray, fmt: Format) -> np.ndarray:
    """The float64 values of codes of finite non-negative values."""
    stored = fmt.precision - 1
    field, fraction = index >> np.int64(stored), index & np.int64(2**stored - 1)
    if not fmt.has_zero:
        return np.ldexp(1.0, (field + fmt.emin).astype(np.int32))
    count = fraction + np.where(field > 0, np.int64(2**stored), np.int64(0))
    return np.ldexp(count.astype(np.float64), (np.maximum(field, 1) - 1 + fmt.emin - stored).astype(np.int32))


@lru_cache(maxsize=256)
def _all_values(fmt: Format) -> Format:
    """The format whose rounding leaves every value that has a code as it is."""
    return fmt.replace(flush=None, saturate=fmt.specials == "finite")


def first_non_value(array: np.ndarray, fmt: Format) -> tuple[int, ...] | None:
    """The index of the first element, in row-major order, that no code of the format stands for; None if there is none.

    NaN counts as a value, also where a format has no code for it, and -0 as the zero of a format that has only one.
    Subnormal values have codes whether or not results are flushed.
    """
    info = np.finfo(array.dtype)
    if fmt.has_infinity and (fmt.precision, fmt.emin, fmt.emax + 1) == (info.nmant + 1, info.minexp, info.maxexp):
        return None  # the dtype has no other values
    held = _all_values(fmt)
    flat = array.reshape(-1)
    rounded = np.empty(min(flat.size, _BLOCK), array.dtype)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        into = rounded[: block.size]
        round_into(block, into, held, Rounding.TOWARD_ZERO)
        wrong = into != block
        if wrong.any():
            wrong &= block == block
            if wrong.any():
                return tuple(int(i) for i in np.unravel_index(start + int(wrong.argmax()), array.shape))
    return None


def require_values(array: np.ndarray, fmt: Format, name: str) -> None:
    """Raise ValueError, naming the first element, unless every one is a value of the format."""
    where = first_non_value(array, fmt)
    if where is not None:
        place = f"{name}[{', '.join(map(str, where))}]" if where else name
        found = float(array[where])
        raise ValueError(f"{place} = {found!r} is not a value of {fmt.name}; round it to the format first")


def _operand(x: Any, fmt: Format) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    """x in a carrier that also holds subnormal values, and what turns results back."""
    arguments.refuse_flush_to_zero()
    return arguments.as_carrier(x, fmt.replace(flush=None), "x")


def _wide(array: np.ndarray) -> np.ndarray:
    """The values in float64, NaNs quiet."""
    with np.errstate(invalid="ignore"):  # a signaling NaN is no error here
        return np.multiply(array, 1.0, dtype=np.float64)


def encode(x: Any, fmt: Any) -> Any:
    """The codes of values of the format.

    Parameters
    ----------
    x : a Python number, a NumPy array or scalar (float16, float32, float64) or a torch tensor on the CPU (those and
        bfloat16), of any shape; every element a value of the format.
    fmt : what `get_format` takes.

    Returns
    -------
    An int for a Python number, else an array or tensor of x's shape, of the smallest unsigned type that holds a code: a
    narrower code (6, 4 or tf32's 19 bits) is right-aligned, one an element. NaN gets the positive quiet code, -0 its
    own where there is one.

    Raises
    ------
    ValueError : an element that is not a value of the format (`round` first), a NaN where the format has none.
    """
    target = get_format(fmt)
    array, _ = _operand(x, target)
    require_values(array, target, "x")
    wide = _wide(array).reshape(-1)
    is_nan = np.isnan(wide)
    finite = np.where(np.isfinite(wide), np.abs(wide), 0.0 if target.has_zero else 1.0)
    code = _index(finite, target)
    code[np.isinf(wide)] = infinity_index(target)
    code = code.view(np.uint64)
    negative = np.signbit(wide) & (target.has_negative_zero | (wide != 0))
    code[negative] |= np.uint64(_signs(target))
    if is_nan.any():
        nan = nan_code(target)
        if nan is None:
            raise ValueError(f"x holds a NaN, for which {target.name} has no code")
        code[is_nan] = nan
    return _like(code.astype(code_dtype(target)).reshape(array.shape), x)


def _like(result: np.ndarray, x: Any) -> Any:
    """Integers or floats as the kind of thing that x is: a tensor, an array, a NumPy scalar or a Python number."""
    if arguments.is_tensor(x):
        import torch

        return torch.from_numpy(result)
    if isinstance(x, np.ndarray):
        return result
    return result[()] if isinstance(x, np.generic) else result.item()


def _codes(bits: Any, fmt: Format) -> np.ndarray:
    """The codes as an array of integers, checked."""
    arguments.require_plain(bits, "bits")
    array = bits
    if arguments.is_tensor(bits):
        if bits.is_floating_point() or bits.is_complex() or bits.is_quantized:
            raise TypeError(f"bits must be integers of at most 64 bits, got {bits.dtype}")
        array = bits.detach().resolve_neg().numpy()
    if isinstance(array, bool) or not isinstance(array, int | np.integer | np.ndarray):
        raise TypeError(f"bits must be an int, a NumPy array or a CPU tensor of integers, got {type(bits).__name__}")
    try:
        array = np.asarray(array)
    except OverflowError:
        array = np.array(None)
    if array.dtype.kind not in "iu":
        raise TypeError(f"bits must be integers of at most 64 bits, got {array.dtype}")
    if array.size and (int(array.min()) < 0 or int(array.max()) >= 2**fmt.bits):
        span = f"{array.min()} to {array.max()}"
        raise ValueError(f"bits must be codes of {fmt.name}: 0 to {2**fmt.bits - 1}, got {span}")
    return array


def _decoded(codes: np.ndarray, fmt: Format) -> np.ndarray:
    """The float64 values of uint64 codes, and NaN for what is none."""
    signs = np.uint64(_signs(fmt))
    index = (codes & ~signs if fmt.signed else codes).view(np.int64)
    largest = int(_index(np.array([fmt.max_finite]), fmt)[0])
    value = _value(np.minimum(index, largest), fmt)
    value[index > largest] = np.nan
    if fmt.has_infinity:
        value[index == infinity_index(fmt)] = np.inf
    negative = (codes & signs) != 0
    np.negative(value, out=value, where=negative)
    if fmt.specials == "fnuz":
        value[negative & (index == 0)] = np.nan
    return value


@lru_cache(maxsize=64)
def _table(fmt: Format) -> np.ndarray:
    table = _decoded(np.arange(2**fmt.bits, dtype=np.uint64), fmt).astype(decoded_dtype(fmt))
    table.setflags(write=False)
    return table


def decoded_dtype(fmt: Format) -> np.dtype:
    """float32, or float64 where float32 does not hold the format's values."""
    return np.dtype(np.float32 if arguments.holds(np.dtype(np.float32), fmt.replace(flush=None)) else np.float64)


def decode(bits: Any, fmt: Any) -> Any:
    """The values that codes of the format stand for.

    Parameters
    ----------
    bits : an int, or a NumPy array or CPU tensor of integers, of any shape; the reverse of what `encode` returns.
    fmt : what `get_format` takes.

    Returns
    -------
    A Python float for an int, else an array or tensor of the same shape: float32, or float64 where float32 does not
    hold the format's values. Every code of a NaN gives a NaN, and so does a code that the format leaves without a meaning.

    Raises
    ------
    ValueError : a negative number or one of more than `fmt.bits` bits. TypeError : anything but integers.
    """
    target = get_format(fmt)
    arguments.refuse_flush_to_zero()
    codes = _codes(bits, target)
    if target.bits <= _TABLE_BITS:
        result = np.asarray(_table(target)[codes])
    else:
        flat = codes.astype(np.uint64).reshape(-1)
        result = _decoded(flat, target).astype(decoded_dtype(target)).reshape(codes.shape)
    return _like(result, bits)


def ulp(x: Any, fmt: Any) -> Any:
    """The unit in the last place: 2^(max(e, emin) - p + 1), e the exponent of x; also between and beyond the values.

    x is what `round` takes; the result has its type, dtype and shape. Of zero it is the unit of the subnormals, of an
    infinity infinity, of NaN NaN.

    Raises
    ------
    ValueError : unknown format, or a dtype that cannot hold the format's values.
    """
    target = get_format(fmt)
    array, wrap = _operand(x, target)
    wide = _wide(array)
    finite = np.isfinite(wide)
    exponent = np.frexp(np.where(finite & (wide != 0), wide, 2.0**target.emin))[1] - 1
    unit = np.ldexp(1.0, np.maximum(exponent, target.emin) - target.precision + 1)
    return wrap(np.asarray(np.where(finite, unit, np.abs(wide)), dtype=array.dtype))


def next_up(x: Any, fmt: Any) -> Any:
    """The least value of the format above x (IEEE 754-2019, section 5.3.1, nextUp).

    x is what `round` takes, every element a value of the format; the result has its type, dtype and shape. Above
    `max_finite` comes infinity, NaN where the format has none, `max_finite` again where it saturates. Above
    -min_subnormal comes -0, above either zero `min_subnormal` (`min_normal` where subnormals are flushed). Infinity and
    NaN stay.

    Raises
    ------
    ValueError : an element that is not a value of the format, or a dtype that cannot hold its values.
    """
    return _next(x, fmt, 1)


def next_down(x: Any, fmt: Any) -> Any:
    """The greatest value of the format below x: -next_up(-x). The least value of float8_e8m0fnu stays."""
    return _next(x, fmt, -1)


def _next(x: Any, fmt: Any, direction: int) -> Any:
    target = get_format(fmt)
    array, wrap = _operand(x, target)
    require_values(array, target, "x")
    wide = direction * _wide(array)
    negative = (wide < 0) if target.signed else np.full(wide.shape, direction < 0)
    magnitude = np.where(np.isfinite(wide), np.abs(wide), 1.0 if not target.has_zero else 0.0)
    largest = int(_index(np.array([target.max_finite]), target)[0])
    index = np.where(np.isinf(wide), largest + 1, _index(magnitude, target)) + np.where(negative, -1, 1)
    if target.flush:
        least = int(_index(np.array([target.min_normal]), target)[0])
        index = np.where((index > 0) & (index < least), np.where(negative, 0, least), index)
    value = _value(np.clip(index, 0, largest), target)
    beyond = target.max_finite if target.saturate else np.inf if target.has_infinity else np.nan
    value = np.where(index > largest, beyond, value)
    value = np.where(negative, -value, value)
    value = np.where(np.isnan(wide) | (np.isinf(wide) & ~negative), wide, value)
    value = direction * value
    if not target.has_negative_zero:
        value = value + 0.0
    return wrap(np.asarray(value, dtype=array.dtype))
