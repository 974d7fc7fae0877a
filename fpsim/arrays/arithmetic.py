"""add, sub, mul, div, sqrt and fma on arrays: the exact result, rounded once to the format in any mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fpsim.backend.subnormals import refuse_flush_to_zero
from fpsim.numbers import arguments
from fpsim.numbers.computing import require_arithmetic
from fpsim.numbers.encoding import require_values
from fpsim.numbers.names import get_system
from fpsim.numbers.operations import operate_into
from fpsim.numbers.rounding import Rounding, get_rounding, seed_key
from fpsim.numbers.system import NumberSystem

_Mode = str | Rounding


def add(a: Any, b: Any, fmt: Any, rounding: _Mode = "nearest-even", *, seed: int | None = None, out: Any = None) -> Any:
    """a + b, correctly rounded to the format.

    Parameters
    ----------
    a, b : values of the format, as Python numbers, NumPy arrays (float16, float32, float64) or torch tensors on the CPU
        (those and bfloat16), of shapes that broadcast together. Arrays and tensors do not mix.
    fmt : what `get_system` takes: any format with p <= 24 and about half of float64's range of exponents, or fp64 (in
        nearest-even). Integers and fixed-point numbers have add, sub, mul and fma, and saturate.
    rounding : a mode or its name.
    seed : needed by "stochastic" and refused elsewhere. Element i of the result, in row-major order, draws from
        (seed, i) alone, and rounds up with the probability that the exact result has, to 2^-32.
    out : an array or tensor of the operands' kind, common dtype and broadcast shape to write to; it may be an operand.

    Returns
    -------
    What the operands are, of their common dtype (Python numbers do not widen it). Special values are IEEE 754-2019's,
    sections 6 and 7: NaN for a NaN or an invalid operation, x - x = +0 (-0 under "down"), overflow by mode. Where the
    format has no infinity NaN takes its place, or +-max_finite where it saturates; without a negative zero every zero
    is +0.

    Raises
    ------
    ValueError : an operand that is no value of the format (`round` first), an unknown format or mode, a format that
        has no arithmetic here, a dtype that cannot hold it, shapes that do not broadcast, a process that flushes
        subnormals to zero.
    TypeError : integers and complex numbers in arrays, tensors elsewhere than on the CPU, other types.
    """
    return _operate("add", (a, b), fmt, rounding, seed, out)


def sub(a: Any, b: Any, fmt: Any, rounding: _Mode = "nearest-even", *, seed: int | None = None, out: Any = None) -> Any:
    """a - b, correctly rounded to the format; everything else as for `add`."""
    return _operate("sub", (a, b), fmt, rounding, seed, out)


def mul(a: Any, b: Any, fmt: Any, rounding: _Mode = "nearest-even", *, seed: int | None = None, out: Any = None) -> Any:
    """a * b, correctly rounded to the format; 0 * infinity is NaN. Everything else as for `add`."""
    return _operate("mul", (a, b), fmt, rounding, seed, out)


def div(a: Any, b: Any, fmt: Any, rounding: _Mode = "nearest-even", *, seed: int | None = None, out: Any = None) -> Any:
    """a / b, correctly rounded to the format.

    A nonzero number over zero is an infinity (NaN where the format has none, +-max_finite where it saturates); 0 / 0
    and infinity / infinity are NaN. Everything else as for `add`.
    """
    return _operate("div", (a, b), fmt, rounding, seed, out)


def sqrt(a: Any, fmt: Any, rounding: _Mode = "nearest-even", *, seed: int | None = None, out: Any = None) -> Any:
    """The square root of a, correctly rounded to the format: NaN below zero, -0 for -0. All else as for `add`."""
    return _operate("sqrt", (a,), fmt, rounding, seed, out)


def fma(
    a: Any, b: Any, c: Any, fmt: Any, rounding: _Mode = "nearest-even", *, seed: int | None = None, out: Any = None
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


def _operands(values: tuple[Any, ...], fmt: NumberSystem) -> _Operands:
    names = "abc"[: len(values)]
    arrays = [arguments.as_carrier(value, fmt.enclosing, name)[0] for value, name in zip(values, names, strict=True)]
    typed = [value for value in values if isinstance(value, np.ndarray | np.generic) or arguments.is_tensor(value)]
    tensors = [value for value in typed if arguments.is_tensor(value)]
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
    with np.errstate(invalid="ignore"):  # converting a signaling NaN is no error here
        converted = tuple(array.astype(carrier, copy=False) for array in arrays)
    return _Operands(converted, shape, kind, dtype)


def _operate(name: str, values: tuple[Any, ...], fmt: Any, rounding: _Mode, seed: int | None, out: Any) -> Any:
    target, mode = get_system(fmt), get_rounding(rounding)
    key = seed_key(mode, seed)
    require_arithmetic(target, mode, "add" if name == "sub" else name)
    refuse_flush_to_zero()
    operands = _operands(values, target)
    arrays = operands.arrays
    if name == "sub":
        name, arrays = "add", (arrays[0], -arrays[1])
    destination = None if out is None else arguments.out_array(out, operands.template())
    if isinstance(destination, np.ndarray) and destination.dtype == arrays[0].dtype and destination.flags.c_contiguous:
        if not any(np.may_share_memory(destination, array) for array in arrays):
            operate_into(name, arrays, destination, target, mode, key)
            return out
    result = np.empty(operands.shape, arrays[0].dtype)
    operate_into(name, arrays, result, target, mode, key)
    if destination is None:
        return operands.wrap(result)
    destination[...] = result
    return out
