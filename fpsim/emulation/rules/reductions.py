"""Sums, means and norms. What a model or autograd sums goes through the accumulator, in row-major order."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fpsim.backend.numba import sums64
from fpsim.backend.numba.functions import power
from fpsim.emulation.machine.engine import reduction
from fpsim.emulation.machine.marks import array_of
from fpsim.emulation.machine.protocol import Axes, Machine, MaybeDtype
from fpsim.emulation.registry import itself_in_float64, register
from fpsim.emulation.rules.matmul import is_native, native

_aten = torch.ops.aten
_FLOAT32, _FLOAT64 = torch.float32, torch.float64


def axes_of(dim: Axes, dims: int) -> list[int]:
    """The reduced axes, ascending; none or an empty list means all."""
    if dim is None or (isinstance(dim, (list, tuple)) and len(dim) == 0):
        return list(range(dims))
    axes = [dim] if isinstance(dim, int) else list(dim)
    return sorted({axis % max(dims, 1) for axis in axes} if dims else set())


def columns_of(x: Tensor, axes: list[int]) -> np.ndarray:
    """(k, m): row-major over the reduced axes down, row-major over the kept axes across."""
    kept = [axis for axis in range(x.dim()) if axis not in axes]
    count = math.prod(x.shape[axis] for axis in axes)
    return array_of(x.detach()).transpose([*axes, *kept]).reshape(count, -1) if x.numel() else np.zeros(
        (count, math.prod(x.shape[axis] for axis in kept)), np.float32)  # fmt: skip


def shape_of(x: Tensor, axes: list[int], keepdim: bool) -> list[int]:
    return [1 if axis in axes else size for axis, size in enumerate(x.shape) if keepdim or axis not in axes]


def _reduce(
    machine: Machine, op: torch._ops.OpOverload, x: Tensor, dim: Axes, keepdim: bool, dtype: MaybeDtype, mean: bool
) -> Tensor:
    result_dtype = dtype if dtype is not None else x.dtype if x.dtype.is_floating_point else None
    if result_dtype is not _FLOAT32:
        machine.check(x)
        return _native_reduction(machine, op, machine.operand(x), dim, keepdim, dtype)
    x = machine.floating(x)
    if is_native(machine):
        return native(machine, op, x) if dim is None and not keepdim else native(machine, op, x, dim, keepdim)
    axes = axes_of(dim, x.dim())
    sums = reduction(machine, array_of(x.detach()), tuple(axes), mean)
    return machine.exact(torch.from_numpy(np.ascontiguousarray(sums).reshape(shape_of(x, axes, keepdim))))


def _native_reduction(
    machine: Machine, op: torch._ops.OpOverload, x: Tensor, dim: Axes, keepdim: bool, dtype: MaybeDtype
) -> Tensor:
    if op in (_aten.sum.default, _aten.mean.default):
        return op(x, dtype=dtype)
    return op(x, dim, keepdim, dtype=dtype)


def _register(name: str, mean: bool) -> None:
    packet = getattr(_aten, name)
    every, some = packet.default, getattr(packet, "dim_IntList" if name == "sum" else "dim")

    @register(every, family="reduction")
    def reduce_all(machine: Machine, x: Tensor, *, dtype: MaybeDtype = None) -> Tensor:
        return _reduce(machine, every, x, None, False, dtype, mean)

    @register(some, family="reduction")
    def reduceaxes_of(machine: Machine, x: Tensor, dim: Axes, keepdim: bool = False, *, dtype: MaybeDtype = None) -> Tensor:
        return _reduce(machine, some, x, dim, keepdim, dtype, mean)


_register("sum", mean=False)
_register("mean", mean=True)


@register(_aten.linalg_vector_norm.default, family="reduction")
def vector_norm(
    machine: Machine, x: Tensor, ord: float = 2, dim: Axes = None, keepdim: bool = False, *, dtype: MaybeDtype = None
) -> Tensor:
    """A kernel: float64 inside, squares summed in a fixed order, one rounding."""
    if x.dtype is not _FLOAT32 or dtype is _FLOAT64:
        return _aten.linalg_vector_norm.default(machine.operand(x), ord, dim, keepdim, dtype=dtype)
    machine.whole()
    x = machine.operand(x)
    axes = axes_of(dim, x.dim())
    columns = np.ascontiguousarray(columns_of(x, axes).T)
    out = np.empty(columns.shape[0])
    if ord == 0:
        out = np.count_nonzero(columns, axis=1).astype(np.float64)
    elif columns.shape[1] == 1:
        out = np.abs(columns[:, 0]).astype(np.float64)  # exact, where its power overflows too
    elif ord == 2:
        sums64.sum_squares_of_rows(columns, out)
        out = np.sqrt(out)
    elif ord == 1:
        sums64.sum_rows(np.abs(columns), out)
    elif ord in (float("inf"), float("-inf")) and columns.shape[1]:
        out = (np.max if ord > 0 else np.min)(np.abs(columns), axis=1).astype(np.float64)
    elif ord not in (float("inf"), float("-inf")):
        sums64.sum_rows(power(np.abs(columns).astype(np.float64), float(ord)), out)
        out = power(out, 1.0 / float(ord))
    else:
        raise machine.refuse(f"a norm of order {ord} of no elements")
    return machine.finish(torch.from_numpy(np.asarray(out)).reshape(shape_of(x, axes, keepdim)))


@register(_aten.norm.ScalarOpt_dim, family="reduction")
def norm_over(machine: Machine, x: Tensor, p: float, dim: Axes, keepdim: bool = False) -> Tensor:
    return vector_norm(machine, x, 2 if p is None else p, dim, keepdim)


@register(_aten.trace.default, family="reduction")
@itself_in_float64(_aten.trace.default)
def trace(machine: Machine, x: Tensor) -> Tensor:
    return _reduce(machine, _aten.sum.default, x.diagonal(), None, False, None, False)


@register(_aten.norm.Scalar, family="reduction")
def norm(machine: Machine, x: Tensor, p: float = 2) -> Tensor:
    return vector_norm(machine, x, p)
