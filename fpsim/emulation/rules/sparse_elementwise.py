"""Elementwise operations with sparse COO tensors, which gradients of embeddings are: those of dense ones, entry by entry.

Entries of one place are added first, as `coalesce` does; what is stored nowhere is +0. So an optimizer's step changes the rows
that have a gradient, each of its operations rounded once, and no other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import RULES, SPARSE, Rule
from fpsim.emulation.rules.sparse import coalesce, flat_places, like, marked, of_coo
from fpsim.emulation.schemas import overloads

_aten = torch.ops.aten


def _entries(machine: Machine, x: Tensor) -> Tensor:
    if x.layout is not torch.sparse_coo:
        raise machine.refuse(f"an elementwise operation on layout {x.layout}, which sparse_coo has: use to_dense()")
    return coalesce(machine, x)


def _is_sparse(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is not torch.strided


def _at(machine: Machine, dense: Tensor, sparse: Tensor) -> Tensor:
    """The elements of a dense tensor where a sparse one of its shape has entries."""
    if dense.shape != sparse.shape:
        shapes = f"{tuple(dense.shape)} and {tuple(sparse.shape)}"
        raise machine.refuse(f"a dense and a sparse tensor of shapes {shapes}, which differ: use to_dense()")
    dense = machine.operand(dense)
    return like(dense, dense[tuple(sparse._indices())])


def _of_entries(op: torch._ops.OpOverload) -> Rule:
    """What takes 0 to 0: each entry, with a number or with what a dense tensor holds in its place."""

    def compute(machine: Machine, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        tensors = [item for item in (x, *rest) if isinstance(item, Tensor) and item.dim() > 0]
        sparse = [item for item in tensors if _is_sparse(item)]
        if len(sparse) > 1 or (sparse[0] is not x and op is not _aten.mul.Tensor):
            raise machine.refuse("a sparse operand beside another tensor: use to_dense()")
        one = _entries(machine, sparse[0])
        operands = [
            one._values() if item is sparse[0] else _at(machine, item, one) if any(item is each for each in tensors) else item
            for item in (x, *rest)
        ]  # fmt: skip
        return marked(machine, of_coo(one._indices(), machine.rules[op](machine, *operands, **named), one.shape))

    return compute


def _sum_rule(op: torch._ops.OpOverload) -> Rule:
    def compute(machine: Machine, x: Tensor, y: Tensor, **named: Any) -> Tensor:
        if not _is_sparse(x):
            y = _entries(machine, y)
            place, total = tuple(y._indices()), machine.rules[op](machine, _at(machine, x, y), y._values(), **named)
            return machine.exact(machine.operand(x).clone().index_put_(place, total))
        if not _is_sparse(y) or x.shape != y.shape or x.sparse_dim() != y.sparse_dim():
            return op(x, y, **named)  # torch's own error
        both = [_entries(machine, item) for item in (x, y)]
        flat = [flat_places(item) for item in both]
        places, inverse = torch.unique(torch.cat(flat), sorted=True, return_inverse=True)
        parts, kept = [], torch.empty(x.sparse_dim(), len(places), dtype=torch.int64)
        for item, where in zip(both, inverse.split([len(item) for item in flat]), strict=True):
            kept[:, where] = item._indices()
            padded = torch.zeros(len(places), *item._values().shape[1:]).index_copy_(0, where, item._values())
            parts.append(like(item._values(), padded))
        return marked(machine, of_coo(kept, machine.rules[op](machine, *parts, **named), x.shape))

    return compute


def _in_place(rule: Rule) -> Rule:
    def compute(machine: Machine, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        result = rule(machine, x, *rest, **named)
        if result.layout is not x.layout:
            raise machine.refuse("a dense tensor cannot become a sparse one in place")
        if x.layout is torch.strided:
            return machine.write(x, result)
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


_RULES = {"add": _sum_rule, "sub": _sum_rule, "mul": _of_entries, "div": _of_entries, "neg": _of_entries}
for _name, _rule_for in _RULES.items():
    _in_place_forms = overloads(f"{_name}_")
    for _overload, _op in overloads(_name).items():
        if _op in RULES and _overload in _in_place_forms:
            _rule = _rule_for(_op)
            SPARSE[_op] = _of_dtype(_op, _rule)
            SPARSE[_in_place_forms[_overload]] = _of_dtype(_in_place_forms[_overload], _in_place(_rule))
