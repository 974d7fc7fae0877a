"""torch's own functions and methods: from the same arguments the same operation, in half the time of a call by its schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_aten = torch.ops.aten
_HOLDERS: tuple[Any, ...] = (
    torch._C._VariableFunctions,
    torch._C._nn,  # type: ignore[attr-defined]
    torch._C._special,  # type: ignore[attr-defined]
    torch._C._linalg,  # type: ignore[attr-defined]
    torch._C._fft,  # type: ignore[attr-defined]
    torch._C.TensorBase,
)

#: What is another operation under that name, or more than one.
_OTHERWISE = frozenset((
    *(_aten.view.dtype, _aten.arange.start_step, _aten.range.default, _aten.range.step),
    *(_aten.add.Scalar, _aten.sub.Scalar, _aten.mul.Scalar, _aten.div.Scalar, _aten.div.Scalar_mode),
    *(_aten.floor_divide.Scalar, _aten._unsafe_index.Tensor),
))  # fmt: skip

#: Parts of names of losses: torch's functions have another default of what a loss is reduced to.
_REDUCED = ("loss", "cross_entropy", "kl_div")


def _slice(x: torch.Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> torch.Tensor:
    if 0 <= dim < x.dim():
        return x[(*_ALL[:dim], slice(start, end, step))] if dim else x[start:end:step]
    return _aten.slice.Tensor(x, dim, start, end, step)


_ALL = (slice(None),) * 64  # of as many dimensions as a tensor may have


def direct(op: torch._ops.OpOverload) -> Callable[..., Any]:
    """What computes a functional operation of ATen with the least overhead: the operation itself where torch has no other."""
    if op is _aten.slice.Tensor:
        return _slice
    schema = op._schema
    namespace, _, name = schema.name.partition("::")
    if namespace != "aten" or op in _OTHERWISE or schema.is_mutable or any(part in name for part in _REDUCED):
        return op
    return next((getattr(holder, name) for holder in _HOLDERS if hasattr(holder, name)), op)
