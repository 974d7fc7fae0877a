"""Codes of a number system's values, and the places between them: encode, decode, ulp, next_up, next_down."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from fpsim.backend.subnormals import refuse_flush_to_zero
from fpsim.numbers import arguments
from fpsim.numbers.encoding import code_dtype, require_values
from fpsim.numbers.formats import Format
from fpsim.numbers.names import get_system
from fpsim.numbers.system import NumberSystem

_TABLE_BITS = 16


def _operand(x: Any, system: NumberSystem) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    """x in a carrier that also holds subnormal values, and what turns results back."""
    refuse_flush_to_zero()
    return arguments.as_carrier(x, _held(system), "x")


def _held(system: NumberSystem) -> Format:
    """A format that holds every value that has a code."""
    return system.enclosing.replace(flush=None)


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
    fmt : what `get_system` takes.

    Returns
    -------
    An int for a Python number, else an array or tensor of x's shape, of the smallest unsigned type that holds a code: a
    narrower code (6, 4 or tf32's 19 bits) is right-aligned, one an element. NaN gets the positive quiet code, -0 its
    own where there is one.

    Raises
    ------
    ValueError : an element that is no value of the format (`round` first), a NaN where the format has none.
    """
    target = get_system(fmt)
    array, _ = _operand(x, target)
    require_values(array, target, "x")
    code = target.encode(_wide(array).reshape(-1))
    return _like(code.astype(code_dtype(target)).reshape(array.shape), x)


def _like(result: np.ndarray, x: Any) -> Any:
    """Integers or floats as the kind of thing that x is: a tensor, an array, a NumPy scalar or a Python number."""
    if arguments.is_tensor(x):
        import torch

        return torch.from_numpy(result)
    if isinstance(x, np.ndarray):
        return result
    return result[()] if isinstance(x, np.generic) else result.item()


def _codes(bits: Any, fmt: NumberSystem) -> np.ndarray:
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


@lru_cache(maxsize=64)
def _table(fmt: NumberSystem) -> np.ndarray:
    table = fmt.decode(np.arange(2**fmt.bits, dtype=np.uint64)).astype(decoded_dtype(fmt))
    table.setflags(write=False)
    return table


def decoded_dtype(fmt: NumberSystem) -> np.dtype:
    """float32, or float64 where float32 does not hold the format's values."""
    return np.dtype(np.float32 if arguments.holds(np.dtype(np.float32), _held(fmt)) else np.float64)


def decode(bits: Any, fmt: Any) -> Any:
    """The values that codes of the format stand for.

    Parameters
    ----------
    bits : an int, or a NumPy array or CPU tensor of integers, of any shape; the reverse of what `encode` returns.
    fmt : what `get_system` takes.

    Returns
    -------
    A Python float for an int, else an array or tensor of the same shape: float32, or float64 where float32 does not
    hold the format's values. Every code of a NaN gives a NaN, and so does a code that the format leaves without a meaning.

    Raises
    ------
    ValueError : a negative number or one of more than `fmt.bits` bits. TypeError : anything but integers.
    """
    target = get_system(fmt)
    refuse_flush_to_zero()
    codes = _codes(bits, target)
    if target.bits <= _TABLE_BITS:
        result = np.asarray(_table(target)[codes])
    else:
        flat = codes.astype(np.uint64).reshape(-1)
        result = target.decode(flat).astype(decoded_dtype(target)).reshape(codes.shape)
    return _like(result, bits)


def ulp(x: Any, fmt: Any) -> Any:
    """The unit in the last place: 2^(max(e, emin) - p + 1), e the exponent of x; also between and beyond the values.

    x is what `round` takes; the result has its type, dtype and shape. Of zero it is the unit of the subnormals, of an
    infinity infinity, of NaN NaN.

    Raises
    ------
    ValueError : unknown format, or a dtype that cannot hold the format's values.
    """
    target = get_system(fmt)
    array, wrap = _operand(x, target)
    return wrap(np.asarray(target.ulp(_wide(array)), dtype=array.dtype))


def next_up(x: Any, fmt: Any) -> Any:
    """The least value of the format above x (IEEE 754-2019, section 5.3.1, nextUp).

    x is what `round` takes, every element a value of the format; the result has its type, dtype and shape. Above
    `max_finite` comes infinity, NaN where the format has none, `max_finite` again where it saturates. Above
    -min_subnormal comes -0, above either zero `min_subnormal` (`min_normal` where subnormals are flushed). Infinity and
    NaN stay.

    Raises
    ------
    ValueError : an element that is no value of the format, or a dtype that cannot hold its values.
    """
    return _next(x, fmt, 1)


def next_down(x: Any, fmt: Any) -> Any:
    """The greatest value of the format below x: -next_up(-x). The least value of float8_e8m0fnu stays."""
    return _next(x, fmt, -1)


def _next(x: Any, fmt: Any, direction: int) -> Any:
    target = get_system(fmt)
    array, wrap = _operand(x, target)
    require_values(array, target, "x")
    return wrap(np.asarray(target.next(_wide(array), direction), dtype=array.dtype))
