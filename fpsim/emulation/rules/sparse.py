"""Sparse matrices in COO and CSR layout: their stored values are values of the format.

An element of a product adds its row's stored entries, by ascending column, through the accumulator; entries of one place are
added first (`coalesce`), in their order, through the accumulator as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.machine import marks
from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import RULES, Entry, Rule, enter, register
from fpsim.emulation.rules.exact import exact_rule
from fpsim.emulation.schemas import names, overloads

_aten = torch.ops.aten
_MOST = 1 << 22  # numbers of the dense operand that are laid out for rows at a time
_COMPRESSED = (torch.sparse_csr,)
_LAYOUTS = (torch.sparse_coo, torch.sparse_csr)

#: What looks into a sparse tensor.
PARTS = names(
    """
    _values values _indices indices crow_indices col_indices is_coalesced _nnz sparse_dim dense_dim _dimV _dimI _coalesced
    """
)

#: What makes one of dense parts, or moves its values.
MOVES = names(
    """
    _sparse_coo_tensor_with_dims_and_tensors _sparse_coo_tensor_with_dims _sparse_compressed_tensor_with_dims
    sparse_compressed_tensor _to_sparse _to_sparse_csr _to_dense sparse_mask
    """
)


def marked(machine: Machine, result: Tensor) -> Tensor:
    """What is stored are values of the format."""
    if result.layout is torch.strided:
        return machine.exact(result)
    machine.exact(result.values() if result.layout in _COMPRESSED else result._values())
    return result


def _read(machine: Machine, value: Any) -> Any:
    """An operand whose entries are values of the format and lie in different places."""
    if not isinstance(value, Tensor) or value.dtype is not torch.float32:
        return value
    if value.layout is torch.strided:
        return machine.operand(value)
    if value.layout is torch.sparse_coo:
        return coalesce(machine, value)
    if value.layout is torch.sparse_csr:
        values = machine.operand(value.values())
        return torch.sparse_csr_tensor(value.crow_indices(), value.col_indices(), values, value.shape, check_invariants=False)
    if value.layout is torch.sparse_csc:  # as a transposed product has it
        return _read(machine, value.to_sparse_csr())
    raise machine.refuse(f"a tensor of layout {value.layout}; there are rules for sparse_coo and sparse_csr")


def _part_rule(op: torch._ops.OpOverload) -> Rule:
    return lambda machine, *args, **kwargs: op(*args, **kwargs)


def _move_rule(op: torch._ops.OpOverload) -> Rule:
    masks = op._schema.name == "aten::sparse_mask"  # the mask's places count alone, those that are named twice too
    made = "with_dims_and_tensors" in op._schema.name or "compressed" in op._schema.name

    def move(machine: Machine, *args: Any, **kwargs: Any) -> Tensor:
        read = machine.operand if made else lambda item: _read(machine, item)
        values = [read(x) if isinstance(x, Tensor) and not (masks and place) else x for place, x in enumerate(args)]
        result = op(*values, **{key: read(item) if isinstance(item, Tensor) else item for key, item in kwargs.items()})
        return marked(machine, result) if result.dtype is torch.float32 else result

    return move


for _names, _rule in ((PARTS, _part_rule), (MOVES, _move_rule)):
    for _name in _names:
        for _op in overloads(_name).values():
            if not any(argument.kwarg_only and argument.alias_info for argument in _op._schema.arguments):
                register(_op, family="sparse")(_rule(_op))


def clone(machine: Machine, x: Tensor, *, memory_format: torch.memory_format | None = None) -> Tensor:
    """A copy; of a sparse matrix one of its stored values, as gradients are kept."""
    if x.layout is torch.strided or x.dtype is not torch.float32:
        return _exact_clone(machine, x, memory_format=memory_format)
    return marked(machine, _aten.clone.default(_read(machine, x)))


_exact_clone = exact_rule(_aten.clone.default)
enter(Entry(_aten.clone.default, "exact", clone))


def of_coo(places: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    return torch.sparse_coo_tensor(places, values, shape, is_coalesced=True, check_invariants=False)


def flat_places(x: Tensor) -> Tensor:
    """The number of each entry's place, in row-major order of the sparse dimensions."""
    places = x._indices()
    flat = torch.zeros(places.shape[1], dtype=torch.int64)
    for axis, size in enumerate(x.shape[: x.sparse_dim()]):
        flat = flat * size + places[axis]
    return flat


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


def _rows(machine: Machine, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the rows of a matrix begin among its stored entries, the columns of these, and their values."""
    a = _read(machine, a)
    if a.layout is torch.sparse_csr:
        return a.crow_indices().to(torch.int64), a.col_indices().to(torch.int64), a.values()
    row, column = a._indices()
    begins = torch.zeros(a.shape[0] + 1, dtype=torch.int64)
    begins[1:] = torch.bincount(row, minlength=a.shape[0]).cumsum(0)
    return begins, column, a._values()


def sparse_product(machine: Machine, name: str, *tensors: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    """What mm, mv, addmm or addmv of these makes, one of the last two sparse."""
    *addends, a, b = tensors
    if name in ("mv", "addmv"):
        columns = [item.unsqueeze(-1) if item.dim() else item for item in (*addends, b)]
        return sparse_product(machine, "addmm", *columns[:-1], a, columns[-1], beta=beta, alpha=alpha)[:, 0]
    if name not in ("mm", "addmm"):
        raise machine.refuse("a sparse operand, which mm, mv, addmm and addmv take: use to_dense()")
    if a.layout is not torch.strided:
        return _product(machine, a, b, *addends, beta=beta, alpha=alpha)
    turned = [item.t() if item.dim() == 2 else item.unsqueeze(-1) if item.dim() == 1 else item for item in addends]
    return _product(machine, b.t(), a.t(), *turned, beta=beta, alpha=alpha).t()


def _product(
    machine: Machine, a: Tensor, b: Tensor, c: Tensor | None = None, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """a @ b of a sparse and a dense matrix, or beta * c + alpha * (a @ b)."""
    if torch.strided not in (a.layout, b.layout) and c is None and alpha == 1:
        return product_of_sparse(machine, a, b)
    if b.layout is not torch.strided or a.layout is torch.strided or b.dtype is not a.dtype or a.dense_dim():
        raise machine.refuse(
            "a product other than those of two sparse matrices of one layout, and of a sparse and a dense one, of one dtype: "
            "use to_dense()"
        )
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise RuntimeError(machine.message(f"shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be multiplied"))
    begins, columns, values = _rows(machine, a)
    b = machine.operand(b)
    addend = None if c is None or beta == 0 else machine.operand(c).expand(a.shape[0], b.shape[1])
    result = torch.zeros(a.shape[0], b.shape[1])
    counts = begins.diff()
    for count in counts.unique().tolist():
        rows = (counts == count).nonzero()[:, 0]
        if count == 0 and addend is None:
            continue
        for part in rows.split(max(1, _MOST // max(1, count * b.shape[1]))):
            entries = begins[part, None] + torch.arange(count)
            left, right = like(values, values[entries][:, None]), like(b, b[columns[entries]])
            if addend is None:
                own = machine.rules[_aten.bmm.default](machine, left, right)
                own = own if alpha == 1 else machine.rules[_aten.mul.Tensor](machine, own, alpha)
            else:
                above = like(addend, addend[part, None])
                own = machine.rules[_aten.baddbmm.default](machine, above, left, right, beta=beta, alpha=alpha)
            result[part] = own[:, 0]
    return machine.exact(result)


def like(source: Tensor, values: Tensor) -> Tensor:
    tag = marks.tag_on(source)
    return values if tag is None else marks.mark(values, tag)


@register(_aten._sparse_sparse_matmul.default, family="sparse")
def product_of_sparse(machine: Machine, a: Tensor, b: Tensor) -> Tensor:
    """The product of two sparse matrices of one layout: for each place that has terms their sum, by ascending k."""
    matrices = a.dim() == b.dim() == 2 and not a.dense_dim() and not b.dense_dim()
    if a.layout is not b.layout or a.layout not in _LAYOUTS or a.dtype is not b.dtype or not matrices:
        raise machine.refuse("a product of sparse tensors other than two COO or two CSR matrices of one dtype: use to_dense()")
    if a.shape[1] != b.shape[0]:
        raise RuntimeError(machine.message(f"shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be multiplied"))
    if a.dtype is not torch.float32:
        return _aten._sparse_sparse_matmul.default(a, b) if a.layout is torch.sparse_coo else _aten.mm.default(a, b)
    (begins, inner, left), (begins_right, columns, right) = _rows(machine, a), _rows(machine, b)
    counts = begins_right.diff()[inner]  # terms that each entry of a has a part in
    entry = torch.repeat_interleave(torch.arange(len(left)), counts)
    first = torch.repeat_interleave(begins_right[inner] - (counts.cumsum(0) - counts), counts)
    partner = first + torch.arange(len(entry))
    rows = torch.repeat_interleave(torch.arange(a.shape[0]), begins.diff())[entry]
    place = rows * b.shape[1] + columns[partner]
    order = torch.argsort(place, stable=True)  # a's entries lie by ascending k in each row
    places, terms = torch.unique_consecutive(place[order], return_counts=True)
    starts, result = terms.cumsum(0) - terms, torch.zeros(len(places))
    for count in terms.unique().tolist():
        for part in (terms == count).nonzero()[:, 0].split(max(1, _MOST // count)):
            chosen = order[starts[part, None] + torch.arange(count)]
            factors = like(left, left[entry[chosen]][:, None]), like(right, right[partner[chosen]][:, :, None])
            result[part] = machine.rules[_aten.bmm.default](machine, *factors)[:, 0, 0]
    return _of_places(machine, places, result, torch.Size((a.shape[0], b.shape[1])), a.layout)


def _of_places(machine: Machine, places: Tensor, values: Tensor, shape: torch.Size, layout: torch.layout) -> Tensor:
    """A matrix of values at ascending places row * columns + column."""
    rows, columns, values = places // max(1, shape[1]), places % max(1, shape[1]), machine.exact(values)
    if layout is torch.sparse_coo:
        return of_coo(torch.stack([rows, columns]), values, shape)
    ends = torch.bincount(rows, minlength=shape[0]).cumsum(0)
    begins = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
    return torch.sparse_csr_tensor(begins, columns, values, shape, check_invariants=False)


@register(_aten._sparse_addmm.default, family="sparse")
def sparse_addmm(machine: Machine, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _product(machine, a, b, c, beta=beta, alpha=alpha)
