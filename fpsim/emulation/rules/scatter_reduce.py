"""Other reductions into places that indices name: sums by the accumulator; products and means are kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.machine.protocol import Machine, MaybeTensor
from fpsim.emulation.registry import Rule, register, register_functional
from fpsim.emulation.rules.exact import exact_rule
from fpsim.emulation.rules.scatter import index_put_rule, scatter_add_rule
from fpsim.emulation.rules.whole import whole_rule

_aten = torch.ops.aten
_FLOAT32 = torch.float32
_scatter_add = scatter_add_rule(_aten.scatter_add.default)
_index_put = index_put_rule(_aten.index_put.default)


def _scatter_reduce_rule(op: torch._ops.OpOverload) -> Rule:
    exact, whole = exact_rule(op), whole_rule(op)

    def scatter_reduce(
        machine: Machine, x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
    ) -> Tensor:
        if x.dtype is not _FLOAT32 or reduce in ("amax", "amin"):
            return exact(machine, x, dim, index, src, reduce, include_self=include_self)
        if reduce == "sum":
            if not include_self:  # a leading +0 changes no sum but one of negative zeros
                x = machine.exact(machine.operand(x).scatter(dim, index, 0.0))
            return _scatter_add(machine, x, dim, index, src)
        return whole(machine, x, dim, index, src, reduce, include_self=include_self)

    return scatter_reduce


register_functional("scatter_reduce", "scatter", _scatter_reduce_rule)


@register(_aten.scatter.reduce, family="scatter")
def scatter_with(machine: Machine, x: Tensor, dim: int, index: Tensor, src: Tensor, *, reduce: str) -> Tensor:
    if x.dtype is not _FLOAT32 or reduce != "add":
        return whole_rule(_aten.scatter.reduce)(machine, x, dim, index, src, reduce=reduce)
    return _scatter_add(machine, x, dim, index, src)


@register(_aten.scatter.value_reduce, family="scatter")
def scatter_number_with(machine: Machine, x: Tensor, dim: int, index: Tensor, value: float, *, reduce: str) -> Tensor:
    if x.dtype is not _FLOAT32:
        return exact_rule(_aten.scatter.value_reduce)(machine, x, dim, index, value, reduce=reduce)
    filled = torch.full(index.shape, float(machine.constant(float(value))), dtype=_FLOAT32)
    return scatter_with(machine, x, dim, index, machine.exact(filled), reduce=reduce)


@register(_aten.scatter_.reduce, family="scatter")
def scatter_with_(machine: Machine, x: Tensor, dim: int, index: Tensor, src: Tensor, *, reduce: str) -> Tensor:
    return machine.write(x, scatter_with(machine, x, dim, index, src, reduce=reduce))


@register(_aten.scatter_.value_reduce, family="scatter")
def scatter_number_with_(machine: Machine, x: Tensor, dim: int, index: Tensor, value: float, *, reduce: str) -> Tensor:
    return machine.write(x, scatter_number_with(machine, x, dim, index, value, reduce=reduce))


def put(machine: Machine, x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    flat = machine.operand(x).reshape(-1)
    return _index_put(machine, flat, [index.reshape(-1)], source.reshape(-1), accumulate).reshape(x.shape)


register_functional("put", "scatter", lambda op: put)


def _inside(x: Tensor, indices: list[MaybeTensor]) -> list[Any]:
    return [None if item is None else item.clamp(-size, size - 1) for item, size in zip(indices, x.shape, strict=False)]


@register(_aten._unsafe_masked_index.default, family="exact")
def masked_index(machine: Machine, x: Tensor, mask: Tensor, indices: list[MaybeTensor], fill: float) -> Tensor:
    x = machine.operand(x)
    chosen = _aten.index.Tensor(x, _inside(x, indices))
    return machine.exact(chosen.masked_fill(~mask, machine.constant(float(fill)) if x.dtype is _FLOAT32 else fill))


@register(_aten._unsafe_masked_index_put_accumulate.default, family="scatter")
def masked_index_put(machine: Machine, x: Tensor, mask: Tensor, indices: list[MaybeTensor], values: Tensor) -> Tensor:
    x, values = machine.operands((x, values))
    kept = machine.exact(values.masked_fill(~mask, 0))
    return _index_put(machine, x, _inside(x, indices), kept, True)
