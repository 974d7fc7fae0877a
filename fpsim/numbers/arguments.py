"""What every public function checks at its boundary."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fpsim.numbers.computing import quantum_exponent
from fpsim.numbers.formats import BF16, Format

_ARRAY_DTYPES = (np.float16, np.float32, np.float64)


def is_tensor(x: Any) -> bool:
    """Whether x is a torch tensor; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def require_plain(x: Any, name: str) -> None:
    """Refuse arrays and tensors that are more than their elements: what they mean beside those would be lost.

    Raises
    ------
    TypeError : a masked array, a matrix or another subclass of `np.ndarray`; a nested, sparse, wrapped or fake tensor, or one
        on another device.
    """
    if type(x) is np.ndarray:
        return
    if is_tensor(x):
        _require_plain_tensor(x, name)
    elif isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, and nothing here reads masks; pass {name}.filled(number), or {name}.data")
    elif isinstance(x, np.ndarray) and type(x) is not np.memmap:
        raise TypeError(f"{name} is a {type(x).__module__}.{type(x).__name__}, not a plain array; pass np.asarray({name})")


def _require_plain_tensor(x: Any, name: str) -> None:
    import torch

    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        raise TypeError(f"{name} is a tensor inside torch.func.grad, vmap or the like, which has no elements of its own there")
    if x.is_nested:
        raise TypeError(f"{name} is a nested tensor; pass its parts, {name}.unbind(), one by one")
    if x.device.type != "cpu" or x.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor on the CPU, got {x.layout} on {x.device}")
    if type(x).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise TypeError(f"{name} is a {type(x).__name__}, which holds no elements itself; pass a plain tensor")


@lru_cache(maxsize=1024)
def holds(dtype: np.dtype, fmt: Format) -> bool:
    """Whether every value of the format is one of the float dtype."""
    info = np.finfo(dtype)
    return (
        fmt.precision <= info.nmant + 1
        and fmt.emax < info.maxexp
        and (quantum_exponent(fmt) if fmt.flush is None and fmt.has_zero else fmt.emin) >= info.minexp - info.nmant
    )


def as_carrier(x: Any, fmt: Format, name: str) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    """A float32 or float64 array of x's values, and what turns a result back into x's type and dtype.

    The array shares x's memory where x is itself a float32 or float64 array or tensor.
    """
    require_plain(x, name)
    if is_tensor(x):
        return _tensor_carrier(x, fmt, name)
    if isinstance(x, bool | np.bool_ | complex):
        raise TypeError(f"{name} must be a real floating-point number, got {x!r}")
    if isinstance(x, int):
        number = float(x) if abs(x) <= 2**1023 else float("inf")
        if number != x:
            raise ValueError(f"{name} = {x} is no float64 value; it would be rounded twice")
        return np.array(number), lambda result: float(result)
    if isinstance(x, float) and not isinstance(x, np.generic):
        return np.array(x), lambda result: float(result)
    if not isinstance(x, np.ndarray | np.generic):
        raise TypeError(f"{name} must be a number, a NumPy array or a torch tensor, got {type(x).__name__}")
    array = np.asarray(x)
    if array.dtype.type not in _ARRAY_DTYPES:
        raise TypeError(f"{name} must be float16, float32 or float64, got {array.dtype}")
    if not array.dtype.isnative:
        raise TypeError(f"{name} is {array.dtype}, of another byte order; pass {name}.astype(np.{array.dtype.name})")
    _require_holds(array.dtype, fmt, name)
    dtype = array.dtype
    is_scalar = isinstance(x, np.generic)
    carrier = _half_values()[array.view(np.uint16), ...] if dtype == np.float16 else array

    def wrap(result: np.ndarray) -> Any:
        result = result.astype(dtype, copy=False)  # exact: the dtype holds the format's values
        return result[()] if is_scalar else result

    return carrier, wrap


@cache
def _half_values() -> np.ndarray:
    """The float32 values of all codes of float16, NaNs quiet: a float instruction would signal those that are not."""
    with np.errstate(invalid="ignore"):
        values = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    values.view(np.uint32)[np.isnan(values)] |= 0x00400000
    values.setflags(write=False)
    return values


def _require_holds(dtype: np.dtype, fmt: Format, name: str) -> None:
    if not holds(dtype, fmt):
        raise ValueError(
            f"{name} is {dtype}, which cannot hold every value of {fmt.name}; convert it to a wider dtype first"
        )


def _tensor_carrier(x: Any, fmt: Format, name: str) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    import torch

    if x.dtype is torch.bfloat16:
        inside = (
            fmt.precision <= BF16.precision
            and fmt.emax <= BF16.emax
            and (fmt.emin - fmt.precision >= BF16.emin - BF16.precision)
        )
        if not inside:
            raise ValueError(
                f"{name} is bfloat16, which cannot hold every value of {fmt.name}; convert it to float32 first"
            )
    elif x.dtype in (torch.float16, torch.float32, torch.float64):
        _require_holds(np.dtype(str(x.dtype).removeprefix("torch.")), fmt, name)
    else:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
    dtype = x.dtype
    detached = x.detach().resolve_neg()
    narrow = dtype in (torch.float16, torch.bfloat16)
    array = (detached.float() if narrow else detached).numpy()
    return array, lambda result: torch.from_numpy(result).to(dtype)


def out_array(out: Any, x: Any) -> Any:
    """`out` as something that a NumPy result can be assigned to, after checking that it matches x."""
    if is_tensor(x) != is_tensor(out) or not (is_tensor(out) or isinstance(out, np.ndarray)):
        raise TypeError(f"out must be of x's type, {type(x).__name__}, got {type(out).__name__}")
    require_plain(out, "out")
    if tuple(out.shape) != tuple(np.shape(x)) or out.dtype != x.dtype:
        raise ValueError(
            f"out must have x's shape and dtype, {tuple(np.shape(x))} {x.dtype}, got {tuple(out.shape)} {out.dtype}"
        )
    if not is_tensor(out):
        if not out.flags.writeable:
            raise ValueError("out is read-only")
        return out
    if out.is_neg() or any(stride == 0 and size > 1 for stride, size in zip(out.stride(), out.shape, strict=True)):
        raise ValueError("out must have memory of its own for each element: it is an expanded or a negative view")
    if out.dtype.itemsize == 2:
        return _TensorDestination(out)
    return out.detach().numpy()


class _TensorDestination:
    """A 16-bit tensor that a float32 array of its values is assigned to."""

    dtype = None

    def __init__(self, tensor: Any):
        self._tensor = tensor.detach()

    def __setitem__(self, key: Any, values: np.ndarray) -> None:
        import torch

        self._tensor.copy_(torch.from_numpy(values))
