"""Sums, products, norms and softmax of sparse tensors: of what is stored, by ascending place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fpsim.emulation.machine import marks
from fpsim.emulation.machine.layouts import with_values
from fpsim.emulation.machine.protocol import Axes, Machine, MaybeDtype
from fpsim.emulation.registry import SPARSE, Rule, register
from fpsim.emulation.rules.reductions import axes_of
from fpsim.emulation.rules.sparse import as_coo, equal_runs, flat_places, like, marked, of_coo, read
from fpsim.emulation.rules.sparse_elementwise import at_places

_aten = torch.ops.aten
_FLOAT32 = torch.float32


def _lines(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    """The entries of x in the order of their places but for these axes, ascending along those; where each such line begins."""
    place = flat_places(x, [axis for axis in range(x.sparse_dim()) if axis not in axes])
    order = torch.argsort(place, stable=True)
    _, counts = torch.unique_consecutive(place[order], return_counts=True)
    return order, torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _reduced(machine: Machine, x: Tensor, axes: list[int], reduce: Callable[[Tensor, list[int]], Tensor]) -> Tensor:
    """A sparse tensor in coordinates with `reduce` over these axes, each of which is left with one element."""
    sparse_axes = [axis for axis in axes if axis < x.sparse_dim()]
    dense_axes = [axis - x.sparse_dim() + 1 for axis in axes if axis >= x.sparse_dim()]
    shape, values = [1 if axis in axes else size for axis, size in enumerate(x.shape)], x._values()
    if not sparse_axes:
        return marked(machine, of_coo(x._indices(), reduce(values, dense_axes), torch.Size(shape)))
    order, starts = _lines(x, sparse_axes)
    result = torch.zeros(len(starts) - 1, *shape[x.sparse_dim() :])
    for lines, entries in equal_runs(starts, values[:1].numel()):
        own = reduce(like(values, values[order[entries]]), [1, *(axis + 1 for axis in dense_axes)])
        result[lines] = own.reshape(len(lines), *result.shape[1:])
    places = x._indices()[:, order[starts[:-1]]]
    places[sparse_axes] = 0
    return marked(machine, of_coo(places, result, torch.Size(shape)))


def _as_torch_has_it(machine: Machine, reduced: Tensor, axes: list[int], pattern: Tensor) -> Tensor:
    """What is left, in the layout and shape that torch gives it."""
    if pattern.layout is torch.strided:
        return machine.exact(reduced.to_dense().reshape(pattern.shape))
    if pattern.layout is not torch.sparse_coo:
        return marked(machine, reduced.to_sparse(layout=pattern.layout))
    if reduced.shape == pattern.shape:
        return reduced
    kept = [axis for axis in range(reduced.sparse_dim()) if axis not in axes]
    gone = [axis - reduced.sparse_dim() + 1 for axis in axes if axis >= reduced.sparse_dim()]
    return marked(machine, of_coo(reduced._indices()[kept], reduced._values().squeeze(gone), pattern.shape))


def _reduction_rule(op: torch._ops.OpOverload, dense: torch._ops.OpOverload) -> Rule:
    def compute(machine: Machine, x: Tensor, dim: Axes = None, keepdim: bool = False, *, dtype: MaybeDtype = None) -> Tensor:
        arguments = () if op is _aten.sum.default else (dim,) if op is _aten._sparse_sum.dim else (dim, keepdim)
        options = {} if op is _aten._sparse_sum.dim else {"dtype": dtype}
        x = read(machine, x)
        pattern = op(x, *arguments, **options)  # or torch's own error
        if pattern.dtype is not _FLOAT32 or x.dtype is not _FLOAT32:
            return machine.exact(pattern) if pattern.layout is torch.strided else marked(machine, pattern)

        def reduce(values: Tensor, axes: list[int]) -> Tensor:
            if dense is _aten.sum.dim_IntList:
                return machine.rules[dense](machine, values, axes, True)
            return machine.rules[dense](machine, values.flatten(1), 1)

        axes = axes_of(dim, x.dim())
        return _as_torch_has_it(machine, _reduced(machine, as_coo(machine, x), axes, reduce), axes, pattern)

    return compute


for _op in (_aten.sum.default, _aten.sum.dim_IntList):
    SPARSE[_op] = _reduction_rule(_op, _aten.sum.dim_IntList)
for _op, _of_dense in (
    (_aten._sparse_sum.dim, _aten.sum.dim_IntList),
    (_aten._sparse_csr_sum.dim_dtype, _aten.sum.dim_IntList),
    (_aten._sparse_csr_prod.dim_dtype, _aten.prod.dim_int),
):
    register(_op, family="sparse")(_reduction_rule(_op, _of_dense))


def norm(machine: Machine, x: Tensor, p: float | None, dim: Axes, keepdim: bool = False) -> Tensor:
    x = read(machine, x)
    pattern = _aten.norm.ScalarOpt_dim(x, p, dim, keepdim)  # or torch's own error
    if x.dtype is not _FLOAT32:
        return pattern
    values = marks.stored(x).flatten()
    return machine.rules[_aten.norm.ScalarOpt_dim](machine, like(marks.stored(x), values), p, [0]).reshape(pattern.shape)


SPARSE[_aten.norm.ScalarOpt_dim] = norm
SPARSE[_aten.any.default] = lambda machine, x: machine.rules[_aten.any.default](machine, marks.stored(read(machine, x)))


def _along_lines(x: Tensor, dim: int, function: Callable[..., Tensor], *others: Tensor) -> Tensor:
    """The values of x, a function of them along an axis put into their places; of others in the same places too."""
    tensors = (x._values(), *others)
    if dim >= x.sparse_dim():
        return function(dim - x.sparse_dim() + 1, *tensors)
    order, starts = _lines(x, [dim])
    result = torch.zeros_like(x._values())
    for _, entries in equal_runs(starts, x._values()[:1].numel()):
        place = order[entries]
        result[place] = function(1, *(like(values, values[place]) for values in tensors))
    return result


def _softmax_rule(op: torch._ops.OpOverload, dense: torch._ops.OpOverload) -> Rule:
    """Along each line over the entries that it has: what is not stored counts as -inf."""

    def compute(machine: Machine, x: Tensor, dim: int, half_to_float: bool) -> Tensor:
        accepted = op(x, dim, half_to_float)  # or torch's own error
        if x.dtype is not _FLOAT32:
            return accepted
        x = as_coo(machine, x)
        values = _along_lines(x, dim % x.dim(), lambda axis, values: machine.rules[dense](machine, values, axis, False))
        return marked(machine, with_values(x, values))

    return compute


def _softmax_gradient_rule(op: torch._ops.OpOverload, dense: torch._ops.OpOverload) -> Rule:
    def compute(machine: Machine, gradient: Tensor, output: Tensor, dim: int, x: Tensor) -> Tensor:
        if output.dtype is not _FLOAT32:
            return op(gradient, output, dim, x)

        def slopes(axis: int, output: Tensor, gradient: Tensor) -> Tensor:
            return machine.rules[dense](machine, gradient, output, axis, _FLOAT32)

        output = as_coo(machine, output)
        values = _along_lines(output, dim % output.dim(), slopes, at_places(machine, gradient, output))
        return marked(machine, with_values(output, values))

    return compute


for _name in ("softmax", "log_softmax"):
    _forward, _backward = (getattr(_aten, f"_sparse_{_name}{rest}").default for rest in ("", "_backward_data"))
    _dense = getattr(_aten, f"_{_name}").default, getattr(_aten, f"_{_name}_backward_data").default
    register(_forward, family="sparse")(_softmax_rule(_forward, _dense[0]))
    register(_backward, family="sparse")(_softmax_gradient_rule(_backward, _dense[1]))
