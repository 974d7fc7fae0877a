"""Sparse tensors: their stored values are values of the format, and what only moves them leaves them as they are.

Entries of one place are added first (`coalesce`), in their order, through the accumulator. Compressed layouts (CSR, CSC, BSR
and BSC) have none of those. What is stored nowhere is +0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.direct import direct
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.layouts import COO, with_values
from fpsim.emulation.machine.protocol import Machine, MaybeDtype
from fpsim.emulation.registry import PARTS_OF_SPARSE, RULES, SPARSE, Entry, Rule, enter, register
from fpsim.emulation.rules.exact import view_rule
from fpsim.emulation.schemas import is_out, mapped, names, overloads

_aten = torch.ops.aten
_MOST = 1 << 22  # numbers that are laid out at a time
_FLOAT32 = torch.float32

#: What looks into a sparse tensor, or takes care of its memory.
PARTS = names(
    """
    _values values _indices indices crow_indices col_indices ccol_indices row_indices is_coalesced _nnz sparse_dim dense_dim
    _dimV _dimI _coalesced _coalesced_ resize_as_sparse_ sparse_resize_ sparse_resize_and_clear_
    """
)

#: What makes one of dense parts.
MAKERS = names(
    """
    _sparse_coo_tensor_with_dims_and_tensors _sparse_coo_tensor_with_dims _sparse_compressed_tensor_with_dims
    sparse_compressed_tensor _spdiags
    """
)

#: What moves values from and to other layouts, or along; operations for sparse tensors alone.
MOVES = names(
    """
    _to_sparse _to_sparse_csr _to_sparse_csc _to_sparse_bsr _to_sparse_bsc _to_dense sparse_mask _sparse_mask_projection
    _sparse_broadcast_to _sparse_sum_backward
    """
)

#: The same of operations that dense tensors have too.
MOVES_OF_ALL = names("cat stack index_select narrow_copy select_copy zeros_like ones_like")


def of_coo(places: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    return torch.sparse_coo_tensor(places, values, shape, is_coalesced=True, check_invariants=False)


def marked(machine: Machine, result: Tensor) -> Tensor:
    """What is stored are values of the format."""
    machine.exact(marks.stored(result))
    return result


def read(machine: Machine, value: Any) -> Any:
    """An operand whose entries are values of the format and lie in different places."""
    if not isinstance(value, Tensor) or value.dtype is not _FLOAT32:
        return value
    if value.layout is torch.strided:
        return machine.operand(value)
    if value.layout is COO:
        return coalesce(machine, value)
    values = machine.operand(value.values())
    return value if values is value.values() else with_values(value, values)


def as_coo(machine: Machine, x: Tensor) -> Tensor:
    """A sparse operand in coordinates, ascending by row."""
    return coalesce(machine, x if x.layout is COO else read(machine, x).to_sparse_coo())


def like(source: Tensor, values: Tensor) -> Tensor:
    tag = marks.tag_on(source)
    return values if tag is None else marks.mark(values, tag)


def flat_places(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """The number of each entry's place, in row-major order of the sparse dimensions, or of these."""
    places = x._indices()
    flat = torch.zeros(places.shape[1], dtype=torch.int64)
    for axis in range(x.sparse_dim()) if axes is None else axes:
        flat = flat * x.shape[axis] + places[axis]
    return flat


def equal_runs(starts: Tensor, width: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Runs from starts[i] up to starts[i + 1], as many at a time as have one length: (which these are, their places)."""
    counts = starts.diff()
    for count in counts.unique().tolist():
        for runs in (counts == count).nonzero()[:, 0].split(max(1, _MOST // max(1, count * width))):
            yield runs, starts[runs, None] + torch.arange(count)


@register(_aten._coalesce.default, family="sparse")
def coalesce(machine: Machine, x: Tensor) -> Tensor:
    if x.is_coalesced():
        values = machine.operand(x._values())
        if values is x._values():
            return x
        return of_coo(x._indices(), values, x.shape)
    places, values = x._indices(), machine.operand(x._values())
    _, inverse = torch.unique(flat_places(x), sorted=True, return_inverse=True)
    count = int(inverse.max()) + 1 if len(inverse) else 0
    kept = torch.empty(places.shape[0], count, dtype=torch.int64).index_copy_(1, inverse, places)
    empty = machine.exact(torch.zeros(count, *values.shape[1:]))
    total = RULES[_aten.index_add.default](machine, empty, 0, inverse, values)
    return of_coo(kept, total, x.shape)


def _part_rule(op: torch._ops.OpOverload) -> Rule:
    return lambda machine, *args, **kwargs: op(*args, **kwargs)


def _maker_rule(op: torch._ops.OpOverload) -> Rule:
    def make(machine: Machine, *args: Any, **kwargs: Any) -> Tensor:
        result = op(*mapped(machine.operand, args), **mapped(machine.operand, kwargs))
        return marked(machine, result) if result.dtype is _FLOAT32 else result

    return make


def _move_rule(op: torch._ops.OpOverload) -> Rule:
    masks = op._schema.name in ("aten::sparse_mask", "aten::_sparse_mask_projection")  # the mask's places count alone

    def move(machine: Machine, *args: Any, **kwargs: Any) -> Tensor:
        values = [mapped(lambda item: read(machine, item), x) if not (masks and place) else x for place, x in enumerate(args)]
        result = op(*values, **kwargs)
        return marked(machine, result) if result.dtype is _FLOAT32 else result

    return move


for _names, _rule in ((PARTS, _part_rule), (MAKERS, _maker_rule), (MOVES, _move_rule)):
    for _name in _names:
        for _op in overloads(_name).values():
            if not is_out(_op):
                register(_op, family="sparse")(_rule(_op))
                if _rule is _part_rule:
                    PARTS_OF_SPARSE.add(_op)
register(_aten.sparse_coo_tensor.size, family="sparse")(_part_rule(_aten.sparse_coo_tensor.size))
for _name in MOVES_OF_ALL:
    for _op in overloads(_name).values():
        SPARSE[_op] = _move_rule(_op)
for _name in ("empty", "empty_like", "zeros"):  # of a sparse layout: no numbers
    for _op in overloads(_name).values():
        SPARSE[_op] = _part_rule(_op)


def clone(machine: Machine, x: Tensor, *, memory_format: torch.memory_format | None = None) -> Tensor:
    """A copy; of a sparse matrix one of its stored values, as gradients are kept."""
    if x.layout is torch.strided or x.dtype is not _FLOAT32:
        return machine.exact(_clone(machine.operand(x), memory_format=memory_format))
    return marked(machine, _clone(read(machine, x)))


_clone = direct(_aten.clone.default)
enter(Entry(_aten.clone.default, "exact", clone))
SPARSE[_aten.clone.default] = clone
SPARSE[_aten.zero_.default] = _part_rule(_aten.zero_.default)


def to_copy(machine: Machine, x: Tensor, *, dtype: MaybeDtype = None, **kwargs: Any) -> Tensor:
    """The stored values in another dtype, each cast as a dense one."""
    x = read(machine, x)
    with machine.dispatching():
        values = marks.stored(x).to(x.dtype if dtype is None else dtype, copy=True)
    return with_values(x, values)


def copy_(machine: Machine, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    with machine.dispatching():
        source = source.to(target.dtype)
    target.copy_(read(machine, source))
    return marked(machine, target)


SPARSE[_aten._to_copy.default] = to_copy
SPARSE[_aten.copy_.default] = copy_


def select(machine: Machine, x: Tensor, dim: int, index: int) -> Tensor:
    """A view; of a tensor in coordinates a copy, in which torch itself would add entries of one place."""
    return _view_select(machine, read(machine, x) if x.layout is COO else x, dim, index)


_view_select = view_rule(_aten.select.int)
enter(Entry(_aten.select.int, "view", select))
