"""Elementwise operations on sparse tensors: those of dense ones, entry by entry.

Entries of one place are added first, as `coalesce` does; what is stored nowhere is +0 and stays so. So an optimizer's step on
the sparse gradient of an embedding changes the rows that have one, each of its operations rounded once, and no other. What
torch refuses of sparse tensors raises torch's own error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.machine import marks
from fpsim.emulation.machine.layouts import COO, CSR, with_values
from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import RULES, SPARSE, Rule
from fpsim.emulation.rules.sparse import as_coo, flat_places, like, marked, of_coo, read
from fpsim.emulation.schemas import inputs_of, is_out, names, overloads

_aten = torch.ops.aten

#: What takes 0 to 0, of one sparse tensor and numbers.
OF_ENTRIES = names(
    """
    abs angle asin asinh atan atanh ceil conj_physical _conj_physical deg2rad div erf erfinv expm1 floor floor_divide frac isinf
    isnan isneginf isposinf log1p mul nan_to_num neg positive pow rad2deg relu round sgn sign signbit sin sinh sqrt square tan
    tanh trunc
    """
)


def _is_sparse(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is not torch.strided


def at_places(machine: Machine, x: Tensor, sparse: Tensor) -> Tensor:
    """The elements of a tensor where a sparse one of its shape, in coordinates, has entries; +0 where x stores nothing."""
    if x.layout is torch.strided:
        dense = machine.operand(x)
        return like(dense, dense.expand(sparse.shape)[tuple(sparse._indices())])
    x = as_coo(machine, x)
    if x.sparse_dim() != sparse.sparse_dim():
        raise machine.refuse("sparse tensors of different numbers of sparse dimensions: use to_dense()")
    known, wanted = flat_places(x), flat_places(sparse)
    values = torch.cat([x._values(), torch.zeros(1, *x._values().shape[1:])])
    found = torch.searchsorted(known, wanted).clamp(max=max(0, len(known) - 1))
    hit = known[found] == wanted if len(known) else torch.zeros(len(wanted), dtype=torch.bool)
    return like(x._values(), values[torch.where(hit, found, len(known))])


def _without_entries(x: Tensor) -> Tensor:
    return torch.empty(x.shape, layout=COO) if x.layout is COO else x


def _in_layout_of(x: Tensor, result: Tensor) -> Tensor:
    return result if x.layout in (COO, torch.strided) else result.to_sparse(layout=x.layout)


def _of_entries(op: torch._ops.OpOverload) -> Rule:
    def compute(machine: Machine, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        op(_without_entries(x), *rest, **named)  # torch's own error
        x = read(machine, x)
        return marked(machine, with_values(x, machine.rules[op](machine, marks.stored(x), *rest, **named)))

    return compute


def _product_rule(op: torch._ops.OpOverload) -> Rule:
    """Of a sparse tensor and a number, a dense tensor that broadcasts to it, or another sparse one: where both have entries."""
    of_entries = _of_entries(op)

    def compute(machine: Machine, x: Tensor, y: Any) -> Tensor:
        if not isinstance(y, Tensor) or (y.dim() == 0 and not _is_sparse(y)):
            return of_entries(machine, x, y)
        if x.dim() == 0 and not _is_sparse(x):
            return of_entries(machine, y, x)
        if x.shape != y.shape or (x.layout is not y.layout and torch.strided not in (x.layout, y.layout)):
            op(x, y)  # torch's own error
        shape = torch.broadcast_shapes(x.shape, y.shape)
        one = x if _is_sparse(x) else y
        entries = as_coo(machine, one)
        if entries.shape != shape:
            entries = as_coo(machine, _aten._sparse_broadcast_to.default(entries, shape))
        other = y if one is x else x
        if _is_sparse(other):
            other = as_coo(machine, other)
            kept = torch.isin(flat_places(entries), flat_places(other))
            values = like(entries._values(), entries._values()[kept])
            entries = of_coo(entries._indices()[:, kept], values, entries.shape)
        factors = [entries._values() if item is one else at_places(machine, other, entries) for item in (x, y)]
        product = of_coo(entries._indices(), machine.rules[op](machine, *factors), entries.shape)
        return marked(machine, _in_layout_of(one, product))

    return compute


def _sum_rule(op: torch._ops.OpOverload) -> Rule:
    def compute(machine: Machine, x: Tensor, y: Tensor, **named: Any) -> Tensor:
        if x.layout is CSR and y.layout is torch.strided and op is _aten.add.Tensor and named.get("alpha", 1) == 1:
            x, y = y, x  # as torch has it of compressed tensors
        if x.shape != y.shape or (_is_sparse(x) and (x.layout is not y.layout or x.sparse_dim() != y.sparse_dim())):
            op(x, y, **named)  # torch's own error
            raise machine.refuse("a dense tensor after a sparse one, or of another shape: use to_dense()")
        if not _is_sparse(x):
            entries = as_coo(machine, y)
            total = machine.rules[op](machine, at_places(machine, x, entries), entries._values(), **named)
            return machine.exact(machine.operand(x).clone().index_put_(tuple(entries._indices()), total))
        both = [as_coo(machine, item) for item in (x, y)]
        flat = [flat_places(item) for item in both]
        places, inverse = torch.unique(torch.cat(flat), sorted=True, return_inverse=True)
        parts, kept = [], torch.empty(x.sparse_dim(), len(places), dtype=torch.int64)
        for item, where in zip(both, inverse.split([len(item) for item in flat]), strict=True):
            kept[:, where] = item._indices()
            padded = torch.zeros(len(places), *item._values().shape[1:]).index_copy_(0, where, item._values())
            parts.append(like(item._values(), padded))
        total = of_coo(kept, machine.rules[op](machine, *parts, **named), x.shape)
        return marked(machine, _in_layout_of(x, total))

    return compute


def _in_place(rule: Rule) -> Rule:
    def compute(machine: Machine, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        result = rule(machine, x, *rest, **named)
        if result.layout is not x.layout:
            raise machine.refuse("a dense tensor cannot become a sparse one in place")
        if x.layout is torch.strided:
            return machine.write(x, result)
        if x.layout is not COO:
            x.resize_as_sparse_(result)
        x.copy_(result)
        return marked(machine, x)

    return compute


def _of_dtype(op: torch._ops.OpOverload, rule: Rule) -> Rule:
    """The rule where every tensor with elements is float32; other dtypes mean themselves."""

    def compute(machine: Machine, *args: Any, **named: Any) -> Tensor:
        dtypes = {item.dtype for item in args if isinstance(item, Tensor) and item.dim() > 0}
        if dtypes == {torch.float32}:
            return rule(machine, *args, **named)
        if torch.float32 in dtypes:
            raise machine.refuse("sparse tensors of several dtypes: use to_dense()")
        return op(*args, **named)

    return compute


def _rule_for(name: str, op: torch._ops.OpOverload) -> Rule:
    if name in ("add", "sub"):
        return _sum_rule(op)
    return _product_rule(op) if op is _aten.mul.Tensor else _of_entries(op)


for _name in ("add", "sub", *OF_ENTRIES):
    for _op in overloads(_name).values():
        if _op in RULES and not is_out(_op):
            _rule = _rule_for(_name, _op)
            SPARSE[_op] = _of_dtype(_op, _rule)
            for _form in overloads(f"{_name}_").values():
                if inputs_of(_form) == inputs_of(_op):
                    SPARSE[_form] = _of_dtype(_form, _in_place(_rule))


def threshold_backward(machine: Machine, gradient: Tensor, x: Tensor, threshold: float) -> Tensor:
    """The gradient of relu, where the gradient has entries."""
    gradient = read(machine, gradient)
    op, entries = _aten.threshold_backward.default, as_coo(machine, gradient)
    values = machine.rules[op](machine, entries._values(), at_places(machine, x, entries), threshold)
    return marked(machine, _in_layout_of(gradient, of_coo(entries._indices(), values, entries.shape)))


SPARSE[_aten.threshold_backward.default] = _of_dtype(_aten.threshold_backward.default, threshold_backward)


def _rule_of_all_values(op: torch._ops.OpOverload) -> Rule:
    """What writes to each value that is stored."""

    def compute(machine: Machine, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        machine.rules[op](machine, marks.stored(x), *rest, **named)
        return x

    return compute


for _op in (_aten.fill_.Scalar, _aten.normal_.default):
    SPARSE[_op] = _rule_of_all_values(_op)
