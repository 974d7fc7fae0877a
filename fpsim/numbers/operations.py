"""Elementwise operations on arrays of a format's values: which way serves a format and mode, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np

from fpsim.backend import numba as kernels, threads
from fpsim.numbers.carriers import top_gap_is_wide
from fpsim.numbers.computing import float32_serves, is_float64, quantum_exponent
from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding, round_into, rounding_constants
from fpsim.numbers.system import NumberSystem

_BLOCK = 1 << 14  # elements whose operands and results stay in the cache between the passes over them
_OPERATIONS = ("add", "mul", "div", "sqrt", "fma")
_COST = 8  # of an element, in multiply-adds

_Arrays = tuple[np.ndarray, ...]
_Step = Callable[[_Arrays, np.ndarray, int], None]  # operands, result, index of the first element


def operate_into(
    name: str, arrays: _Arrays, out: np.ndarray, fmt: NumberSystem, rounding: Rounding, key: int = 0
) -> None:
    """`name` ("add", "mul", "div", "sqrt", "fma") of arrays of values of the format, of one carrier dtype.

    They broadcast to the shape of `out`, a C-contiguous array of that dtype that shares no memory with them. Nothing is
    checked.
    """
    flat = out.reshape(-1)
    if not isinstance(fmt, Format):
        step: _Step = partial(_odd_step, _operation(name), fmt, rounding, key)
    elif is_float64(fmt):
        step = partial(_native_step, name)
    elif name != "fma" and flat.dtype == np.float32 and float32_serves(fmt, rounding) and fmt.has_negative_zero:
        step = partial(_float32_step, name, fmt, rounding)
    elif rounding is Rounding.STOCHASTIC and fmt.precision > 20:
        step = partial(_stochastic_step, name, fmt, key)
    else:
        step = partial(_odd_step, _operation(name), fmt, rounding, key)

    def compute(start: int, stop: int) -> None:
        first = start
        for blocks in _blocks(arrays, out.shape, start, stop):
            last = first + blocks[0].size
            step(blocks, flat[first:last], first)
            first = last

    threads.run(compute, threads.parts(flat.size, _COST * flat.size, _BLOCK))


def _blocks(arrays: _Arrays, shape: tuple[int, ...], start: int, stop: int) -> Iterator[_Arrays]:
    """Contiguous pieces of the broadcast operands, in row-major order, from element `start` to `stop` of the result."""
    if all(array.shape == shape and array.flags.c_contiguous for array in arrays):
        flat = [array.reshape(-1) for array in arrays]
        for first in range(start, stop, _BLOCK):
            last = min(first + _BLOCK, stop)
            yield tuple(array[first:last] for array in flat)
        return
    pieces = np.nditer(
        [np.broadcast_to(array, shape) for array in arrays],
        flags=["external_loop", "buffered", "ranged"],
        order="C",
        buffersize=_BLOCK,
    )
    pieces.iterrange = (start, stop)  # type: ignore[misc]
    with pieces:
        for piece in pieces:
            parts = piece if isinstance(piece, tuple) else (piece,)
            for first in range(0, parts[0].size, _BLOCK):
                yield tuple(np.ascontiguousarray(part[first : first + _BLOCK]) for part in parts)


_UFUNCS = {"add": np.add, "mul": np.multiply, "div": np.divide, "sqrt": np.sqrt}


def _native_step(name: str, blocks: _Arrays, out: np.ndarray, first: int) -> None:
    """float64's own operations, to nearest even."""
    if name == "fma":
        kernels.arithmetic.fused_array(*(np.require(block, requirements="W") for block in blocks), out)
    else:
        with np.errstate(all="ignore"):
            _UFUNCS[name](*blocks, out=out)


def _float32_step(name: str, fmt: Format, rounding: Rounding, blocks: _Arrays, out: np.ndarray, first: int) -> None:
    """float32's result, rounded: see `float32_serves`."""
    with np.errstate(all="ignore"):
        _UFUNCS[name](*blocks, out=out)
    round_into(out, out, fmt, rounding)


@cache
def _operation(name: str) -> Any:
    return kernels.arithmetic.make_operation(_OPERATIONS.index(name))


@cache
def _truncated_operation(name: str) -> Any:
    return kernels.arithmetic.make_truncated_operation(_OPERATIONS.index(name))


def _wide(blocks: _Arrays, fmt: NumberSystem) -> _Arrays:
    """The operands in float64, with the sign of zeros that the format does not tell apart taken away; three of them."""
    with np.errstate(invalid="ignore"):  # converting a signaling NaN is no error here
        wide = [block.astype(np.float64) if fmt.has_negative_zero else block + np.float64(0) for block in blocks]
    return wide[0], wide[min(1, len(wide) - 1)], wide[-1]


def _least_operand(fmt: NumberSystem) -> float:
    return fmt.min_normal if isinstance(fmt, Format) and fmt.flush_inputs else 0.0


def _odd_step(
    operation: Any, fmt: NumberSystem, rounding: Rounding, key: int, blocks: _Arrays, out: np.ndarray, first: int
) -> None:
    """float64 rounded to odd, then rounded to the format: right in every mode for p <= 51 (Boldo and Melquiond 2008).

    It settles stochastic rounding too as long as 2^-32 of an ulp is an even number of steps of float64: up to p = 20.
    """
    result = np.empty(out.size)
    operation(*_wide(blocks, fmt), result, _least_operand(fmt), rounding is Rounding.DOWN)
    fmt.round_into(result, result, rounding, key, first)
    out[...] = result


def _stochastic_step(name: str, fmt: Format, key: int, blocks: _Arrays, out: np.ndarray, first: int) -> None:
    """For p > 20: float64 truncated, and how many 2^-32 ulp are left, by which the draws are lowered."""
    row = rounding_constants(fmt, Rounding.STOCHASTIC, np.dtype(np.float64))
    bits, counts = truncated(name, _wide(blocks, fmt), fmt)
    kernels.arithmetic.round_truncated(bits, counts, bits, row, np.uint64(key), np.int64(first))
    out[...] = bits.view(np.float64)


def truncated(name: str, operands: _Arrays, fmt: Format) -> tuple[np.ndarray, np.ndarray]:
    """The bits of exact results truncated to float64, and how many 2^-32 of the format's ulp each exceeds them by.

    Three operands, of which `name` may leave some unused.
    """
    least_ulp = -2000 if fmt.flush else quantum_exponent(fmt)
    top = fmt.max_finite if top_gap_is_wide(fmt) else math.inf
    bits, counts = np.empty(operands[0].size, np.int64), np.empty(operands[0].size, np.int64)
    _truncated_operation(name)(
        *operands, bits, counts, _least_operand(fmt), np.int64(fmt.precision), np.int64(least_ulp), top
    )
    return bits, counts


def odd_sum(a: np.ndarray, b: np.ndarray, rounding: Rounding) -> np.ndarray:
    """a + b in float64 rounded to odd: no later rounding to 51 bits or fewer can tell it from the exact sum.

    The residual is TwoSum's (Knuth), which is exact: float32 values do not overflow float64. A sum that is exactly zero
    is -0 when rounding down (IEEE 754-2019, section 6.3).
    """
    x, y = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    with np.errstate(invalid="ignore"):
        total = np.asarray(x + y)
        part = total - x
        error = (x - (total - part)) + (y - part)
        inexact = (error != 0) & np.isfinite(total) & ((total.view(np.int64) & 1) == 0)
        neighbor = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    total = np.where(inexact, neighbor, total)
    if rounding is Rounding.DOWN:
        cancelled = (total == 0) & ~((x == 0) & (y == 0) & (np.signbit(x) == np.signbit(y)))
        total = np.where(cancelled, -0.0, total)
    return total
