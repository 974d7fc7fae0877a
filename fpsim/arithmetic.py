"""add, sub, mul, div, sqrt and fma on arrays: the exact result, rounded once to the format in any mode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fpsim import _checks, threads
from fpsim.encoding import require_values
from fpsim.formats import FP64, Format, get_format
from fpsim.rounding import Rounding, draw_key, get_rounding, round_into, rounding_constants

_BLOCK = 1 << 14  # elements whose operands and results stay in the cache between the passes over them
_OPERATIONS = ("add", "mul", "div", "sqrt", "fma")
_COST = 8  # of an element, in multiply-adds


def require_arithmetic(fmt: Format, rounding: Rounding) -> None:
    """Raise ValueError unless the operations are correctly rounded in this format and mode.

    They are where float64 holds every product and the range of every quotient: p <= 24, 2(emin - p + 1) >= -1074 and
    2(emax + 1) <= 1023. fp64 is the machine's own.
    """
    if not fmt.has_zero:
        raise ValueError(f"{fmt.name} has no zero: it has rounding and encoding only, no arithmetic")
    if is_native(fmt):
        if rounding is not Rounding.NEAREST_EVEN:
            raise ValueError(f"{fmt.name} computes in nearest-even only, not {rounding}")
        return
    if fmt.precision > 24 or 2 * (fmt.emin - fmt.precision + 1) < -1074 or 2 * (fmt.emax + 1) > 1023:
        raise ValueError(
            f"{fmt.name} has rounding and encoding only, no arithmetic: it would need precision <= 24, "
            "2(emin - precision + 1) >= -1074 and 2(emax + 1) <= 1023"
        )
    if rounding is Rounding.ODD and fmt.precision == 1:
        raise ValueError(f"{fmt.name} cannot be rounded to odd: a significand of one bit is never even")


def is_native(fmt: Format) -> bool:
    """Whether the format is float64 under any name."""
    return fmt.replace(name=FP64.name) == FP64


@lru_cache(maxsize=1024)
def _float32_serves(fmt: Format, rounding: Rounding) -> bool:
    """Whether rounding float32's nearest result of two operands to the format rounds the exact result (not for fma).

    Figueroa's condition 24 >= 2p + 2 (1995) with float32's own range, for results to nearest even.
    """
    return (
        rounding is Rounding.NEAREST_EVEN
        and 2 * fmt.precision + 2 <= 24
        and fmt.emin >= 3 * fmt.precision - 150
        and fmt.emax <= 127
        and fmt.flush is None
        and not fmt.flush_inputs
        and fmt.has_negative_zero
    )


def add(a: Any, b: Any, fmt: Any, rounding: str | Rounding = "nearest-even", *, seed: int | None = None, out: Any = None) -> Any:
    """a + b, correctly rounded to the format.

    Parameters
    ----------
    a, b : values of the format, as Python numbers, NumPy arrays (float16, float32, float64) or torch tensors on the CPU
        (those and bfloat16), of shapes that broadcast together. Arrays and tensors do not mix.
    fmt : what `get_format` takes: any format with p <= 24 and about half of float64's range of exponents, or fp64 (in
        nearest-even).
    rounding : a mode or its name.
    seed : needed by "stochastic" and refused elsewhere. Element i of the result, in row-major order, draws from (seed, i)
        alone, and rounds up with the probability that the exact result has, to 2^-32.
    out : an array or tensor of the operands' kind, common dtype and broadcast shape to write to; it may be an operand.

    Returns
    -------
    What the operands are, of their common dtype (Python numbers do not widen it). Special values are IEEE 754-2019's, sections
    6 and 7: NaN for a NaN or an invalid operation, x - x = +0 (-0 under "down"), overflow by mode. Where the format has
    no infinity NaN takes its place, or +-max_finite where it saturates; without a negative zero every zero is +0.

    Raises
    ------
    ValueError : an operand that is not a value of the format (`round` first), an unknown format or mode, a format that
        has no arithmetic here, a dtype that cannot hold it, shapes that do not broadcast, a process that flushes subnormals to zero.
    TypeError : integers and complex numbers in arrays, tensors elsewhere than on the CPU, other types.
    """
    return _operate("add", (a, b), fmt, rounding, seed, out)


def sub(a: Any, b: Any, fmt: Any, rounding: str | Rounding = "nearest-even", *, seed: int | None = None, out: Any = None) -> Any:
    """a - b, correctly rounded to the format; everything else as for `add`."""
    return _operate("sub", (a, b), fmt, rounding, seed, out)


def mul(a: Any, b: Any, fmt: Any, rounding: str | Rounding = "nearest-even", *, seed: int | None = None, out: Any = None) -> Any:
    """a * b, correctly rounded to the format; 0 * infinity is NaN. Everything else as for `add`."""
    return _operate("mul", (a, b), fmt, rounding, seed, out)


def div(a: Any, b: Any, fmt: Any, rounding: str | Rounding = "nearest-even", *, seed: int | None = None, out: Any = None) -> Any:
    """a / b, correctly rounded to the format.

    A nonzero number over zero is an infinity (NaN where the format has none, +-max_finite where it saturates); 0 / 0 and
    infinity / infinity are NaN. Everything else as for `add`.
    """
    return _operate("div", (a, b), fmt, rounding, seed, out)


def sqrt(a: Any, fmt: Any, rounding: str | Rounding = "nearest-even", *, seed: int | None = None, out: Any = None) -> Any:
    """The square root of a, correctly rounded to the format: NaN below zero, -0 for -0. Everything else as for `add`."""
    return _operate("sqrt", (a,), fmt, rounding, seed, out)


def fma(
    a: Any, b: Any, c: Any, fmt: Any, rounding: str | Rounding = "nearest-even", *, seed: int | None = None, out: Any = None
) -> Any:
    """a * b + c with one rounding (IEEE 754-2019, section 5.4.1), correct for the format.

    0 * infinity + c is NaN for every c. An exact zero sum has the sign that a sum of the product and c would have.
    Everything else as for `add`.
    """
    return _operate("fma", (a, b, c), fmt, rounding, seed, out)


@dataclass(frozen=True)
class _Operands:
    """Checked operands: arrays of one carrier dtype that broadcast to `shape`, and the kind and dtype of the result."""

    arrays: tuple[np.ndarray, ...]
    shape: tuple[int, ...]
    kind: str  # "python", "scalar", "numpy" or "torch"
    dtype: Any

    def wrap(self, result: np.ndarray) -> Any:
        if self.kind == "torch":
            import torch

            return torch.from_numpy(result).to(self.dtype)
        if self.kind == "python":
            return float(result)
        result = result.astype(self.dtype, copy=False)
        return result[()] if self.kind == "scalar" else result

    def template(self) -> Any:
        """Something of the result's type, shape and dtype."""
        if self.kind == "torch":
            import torch

            return torch.empty(self.shape, dtype=self.dtype, device="meta")
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)


def _operands(values: tuple[Any, ...], fmt: Format) -> _Operands:
    names = "abc"[: len(values)]
    arrays = [_checks.as_carrier(value, fmt, name)[0] for value, name in zip(values, names, strict=True)]
    typed = [value for value in values if isinstance(value, np.ndarray | np.generic) or _checks.is_tensor(value)]
    tensors = [value for value in typed if _checks.is_tensor(value)]
    dtype: Any = np.dtype(np.float64)
    if tensors:
        import torch

        if len(tensors) != len(typed):
            raise TypeError("operands must be all tensors or all NumPy arrays (and Python numbers), got both")
        kind, dtype = "torch", tensors[0].dtype
        for tensor in tensors[1:]:
            dtype = torch.promote_types(dtype, tensor.dtype)
        carrier = np.dtype(np.float64 if dtype is torch.float64 else np.float32)
    else:
        if typed:
            dtype = np.result_type(*(value.dtype for value in typed))
        is_array = any(isinstance(value, np.ndarray) for value in typed)
        kind = "numpy" if is_array else "scalar" if typed else "python"
        carrier = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    for array, name in zip(arrays, names, strict=True):
        require_values(array, fmt, name)
    try:
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
    except ValueError:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(names, arrays, strict=True))
        raise ValueError(f"shapes do not broadcast together: {shapes}") from None
    # Exact: a carrier that is narrower than an operand is narrower than a Python number, now known to be a value.
    return _Operands(tuple(array.astype(carrier, copy=False) for array in arrays), shape, kind, dtype)


def _operate(name: str, values: tuple[Any, ...], fmt: Any, rounding: Any, seed: int | None, out: Any) -> Any:
    target, mode = get_format(fmt), get_rounding(rounding)
    if mode is Rounding.STOCHASTIC:
        if seed is None:
            raise ValueError('rounding="stochastic" needs seed=, an int')
    elif seed is not None:
        raise ValueError(f'seed= is for rounding="stochastic" and has no use with "{mode}"')
    require_arithmetic(target, mode)
    _checks.refuse_flush_to_zero()
    operands = _operands(values, target)
    arrays = operands.arrays
    if name == "sub":
        name, arrays = "add", (arrays[0], -arrays[1])
    key = draw_key(seed) if seed is not None else 0
    destination = None if out is None else _checks.out_array(out, operands.template())
    fits = isinstance(destination, np.ndarray) and destination.dtype == arrays[0].dtype and destination.flags.c_contiguous
    if fits and not any(np.may_share_memory(destination, array) for array in arrays):
        operate_into(name, arrays, destination, target, mode, key)
        return out
    result = np.empty(operands.shape, arrays[0].dtype)
    operate_into(name, arrays, result, target, mode, key)
    if destination is None:
        return operands.wrap(result)
    destination[...] = result
    return out


def operate_into(
    name: str, arrays: tuple[np.ndarray, ...], out: np.ndarray, fmt: Format, rounding: Rounding, key: int = 0
) -> None:
    """`name` ("add", "mul", "div", "sqrt", "fma") of arrays of values of the format, of one carrier dtype, that broadcast
    to the shape of `out`, a C-contiguous array of that dtype that shares no memory with them. Nothing is checked.
    """
    flat = out.reshape(-1)
    if is_native(fmt):
        step: Any = _native_step(name)
    elif name != "fma" and flat.dtype == np.float32 and _float32_serves(fmt, rounding):
        step = _float32_step(name, fmt, rounding)
    elif rounding is Rounding.STOCHASTIC and fmt.precision > 20:
        step = _stochastic_step(name, fmt, key)
    else:
        step = _odd_step(name, fmt, rounding, key)

    def compute(start: int, stop: int) -> None:
        first = start
        for blocks in _blocks(arrays, out.shape, start, stop):
            last = first + blocks[0].size
            step(blocks, flat[first:last], first)
            first = last

    threads.run(compute, threads.parts(flat.size, _COST * flat.size, _BLOCK))


def _blocks(arrays: tuple[np.ndarray, ...], shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[np.ndarray, ...]]:
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
    pieces.iterrange = (start, stop)
    with pieces:
        for piece in pieces:
            found = piece if isinstance(piece, tuple) else (piece,)
            for first in range(0, found[0].size, _BLOCK):
                yield tuple(np.ascontiguousarray(array[first : first + _BLOCK]) for array in found)


_UFUNCS = {"add": np.add, "mul": np.multiply, "div": np.divide, "sqrt": np.sqrt}


def _native_step(name: str) -> Any:
    """float64's own operations, to nearest even."""

    def step(blocks: tuple[np.ndarray, ...], out: np.ndarray, first: int) -> None:
        if name == "fma":
            from fpsim._kernels.arithmetic import fused_array

            fused_array(*(np.require(block, requirements="W") for block in blocks), out)
        else:
            with np.errstate(all="ignore"):
                _UFUNCS[name](*blocks, out=out)

    return step


def _float32_step(name: str, fmt: Format, rounding: Rounding) -> Any:
    """float32's result, rounded: see `_float32_serves`."""

    def step(blocks: tuple[np.ndarray, ...], out: np.ndarray, first: int) -> None:
        with np.errstate(all="ignore"):
            _UFUNCS[name](*blocks, out=out)
        round_into(out, out, fmt, rounding)

    return step


@lru_cache(maxsize=None)
def _operation(name: str) -> Any:
    from fpsim._kernels import arithmetic as kernels

    return kernels.make_operation(_OPERATIONS.index(name))


@lru_cache(maxsize=None)
def _truncated_operation(name: str) -> Any:
    from fpsim._kernels import arithmetic as kernels

    return kernels.make_truncated_operation(_OPERATIONS.index(name))


def _wide(blocks: tuple[np.ndarray, ...], fmt: Format) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The operands in float64, with the sign of zeros that the format does not tell apart taken away; three of them."""
    wide = [block.astype(np.float64) if fmt.has_negative_zero else block + np.float64(0) for block in blocks]
    return wide[0], wide[min(1, len(wide) - 1)], wide[-1]


def _least_operand(fmt: Format) -> float:
    return 2.0**fmt.emin if fmt.flush_inputs else 0.0


def _odd_step(name: str, fmt: Format, rounding: Rounding, key: int) -> Any:
    """float64 rounded to odd, then rounded to the format: right in every mode for p <= 51 (Boldo and Melquiond 2008).

    It settles stochastic rounding too as long as 2^-32 of an ulp is an even number of steps of float64: up to p = 20.
    """
    operation = _operation(name)
    least, down = _least_operand(fmt), rounding is Rounding.DOWN

    def step(blocks: tuple[np.ndarray, ...], out: np.ndarray, first: int) -> None:
        result = np.empty(out.size)
        operation(*_wide(blocks, fmt), result, least, down)
        round_into(result, result, fmt, rounding, key, first)
        out[...] = result

    return step


def _stochastic_step(name: str, fmt: Format, key: int) -> Any:
    """For p > 20: float64 truncated, and how many 2^-32 ulp are left, by which the draws are lowered."""
    from fpsim._kernels.arithmetic import round_truncated

    row = rounding_constants(fmt, Rounding.STOCHASTIC, np.dtype(np.float64))

    def step(blocks: tuple[np.ndarray, ...], out: np.ndarray, first: int) -> None:
        bits, counts = truncated(name, _wide(blocks, fmt), fmt)
        round_truncated(bits, counts, bits, row, np.uint64(key), np.int64(first))
        out[...] = bits.view(np.float64)

    return step


def truncated(name: str, operands: tuple[np.ndarray, np.ndarray, np.ndarray], fmt: Format) -> tuple[np.ndarray, np.ndarray]:
    """The bits of exact results truncated to float64, and how many 2^-32 of the format's ulp there each exceeds them by."""
    least_ulp = -2000 if fmt.flush else fmt.emin - fmt.precision + 1
    gap_is_wide = fmt.stochastic_top - fmt.max_finite > 2.0 ** (fmt.emax - fmt.precision + 1)
    top = fmt.max_finite if gap_is_wide else math.inf
    bits, counts = np.empty(operands[0].size, np.int64), np.empty(operands[0].size, np.int64)
    _truncated_operation(name)(
        *operands, bits, counts, _least_operand(fmt), np.int64(fmt.precision), np.int64(least_ulp), top
    )
    return bits, counts
