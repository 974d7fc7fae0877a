"""Products with sparse matrices: an element adds its row's stored entries, by ascending column, through the accumulator."""

from __future__ import annotations

import torch
from torch import Tensor

from fpsim.emulation.machine import marks
from fpsim.emulation.machine.layouts import COO, CSR, with_values
from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import register
from fpsim.emulation.rules.sparse import as_coo, equal_runs, like, marked, of_coo, read

_aten = torch.ops.aten


def _rows(machine: Machine, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the rows of a matrix begin among its stored entries, the columns of these, and their values."""
    if a.layout is CSR:
        a = read(machine, a)
        return a.crow_indices().to(torch.int64), a.col_indices().to(torch.int64), a.values()
    a = as_coo(machine, a)
    row, column = a._indices()
    begins = torch.zeros(a.shape[0] + 1, dtype=torch.int64)
    begins[1:] = torch.bincount(row, minlength=a.shape[0]).cumsum(0)
    return begins, column, a._values()


def _shapes(machine: Machine, a: Tensor, b: Tensor) -> None:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise RuntimeError(machine.message(f"shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be multiplied"))


def sparse_product(machine: Machine, name: str, *tensors: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    """What mm, mv, addmm, addmv or bmm of these makes, one of the last two sparse."""
    *addends, a, b = tensors
    if name in ("mv", "addmv"):
        columns = [item.unsqueeze(-1) if item.dim() else item for item in (*addends, b)]
        return sparse_product(machine, "addmm", *columns[:-1], a, columns[-1], beta=beta, alpha=alpha)[:, 0]
    if name == "bmm" and a.layout is COO and b.layout is torch.strided and len(a) == len(b):
        a = as_coo(machine, a)
        parts = [_product(machine, matrix, other) for matrix, other in zip(a.unbind(), b, strict=True)]
        return machine.exact(torch.stack(parts) if parts else torch.zeros(0, a.shape[1], b.shape[2]))
    if name not in ("mm", "addmm"):
        raise machine.refuse("a sparse operand, which mm, mv, addmm, addmv and the first of bmm take: use to_dense()")
    if a.layout is not torch.strided:
        return _product(machine, a, b, *addends, beta=beta, alpha=alpha)
    turned = [item.t() if item.dim() == 2 else item.unsqueeze(-1) if item.dim() == 1 else item for item in addends]
    return _product(machine, b.t(), a.t(), *turned, beta=beta, alpha=alpha).t()


def _product(machine: Machine, a: Tensor, b: Tensor, c: Tensor | None = None, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """a @ b of a sparse and a dense matrix, or beta * c + alpha * (a @ b)."""
    if torch.strided not in (a.layout, b.layout) and c is None and alpha == 1:
        return product_of_sparse(machine, a, b)
    if b.layout is not torch.strided or a.layout is torch.strided or b.dtype is not a.dtype or a.dense_dim():
        raise machine.refuse(
            "a product other than those of two sparse matrices, and of a sparse and a dense one, of one dtype: use to_dense()"
        )
    _shapes(machine, a, b)
    if a.dtype is not torch.float32:
        return _aten.mm.default(a, b) if c is None else _aten.addmm.default(c, a, b, beta=beta, alpha=alpha)
    begins, columns, values = _rows(machine, a)
    b = machine.operand(b)
    addend = None if c is None or beta == 0 else machine.operand(c).expand(a.shape[0], b.shape[1])
    result = torch.zeros(a.shape[0], b.shape[1])
    for rows, entries in equal_runs(begins, b.shape[1]):
        left, right = like(values, values[entries][:, None]), like(b, b[columns[entries]])
        if addend is None and alpha == 1:
            own = machine.rules[_aten.bmm.default](machine, left, right) if entries.shape[1] else result[rows, None]
        else:
            above, factor = (result[rows, None], 0) if addend is None else (like(addend, addend[rows, None]), beta)
            own = machine.rules[_aten.baddbmm.default](machine, above, left, right, beta=factor, alpha=alpha)
        result[rows] = own[:, 0]
    return machine.exact(result)


@register(_aten._sparse_sparse_matmul.default, family="sparse")
def product_of_sparse(machine: Machine, a: Tensor, b: Tensor) -> Tensor:
    """The product of two sparse matrices, in a's layout: for each place that has terms their sum, by ascending k."""
    if a.dtype is not b.dtype or a.dense_dim() or b.dense_dim():
        raise machine.refuse("a product of sparse tensors other than two matrices of one dtype: use to_dense()")
    _shapes(machine, a, b)
    if a.dtype is not torch.float32:
        return _aten._sparse_sparse_matmul.default(a, b) if a.layout is COO else _aten.mm.default(a, b)
    (begins, inner, left), (begins_right, columns, right) = _rows(machine, a), _rows(machine, b)
    counts = begins_right.diff()[inner]  # terms that each entry of a has a part in
    entry = torch.repeat_interleave(torch.arange(len(left)), counts)
    first = torch.repeat_interleave(begins_right[inner] - (counts.cumsum(0) - counts), counts)
    partner = first + torch.arange(len(entry))
    rows = torch.repeat_interleave(torch.arange(a.shape[0]), begins.diff())[entry]
    place = rows * b.shape[1] + columns[partner]
    order = torch.argsort(place, stable=True)  # a's entries lie by ascending k in each row
    places, terms = torch.unique_consecutive(place[order], return_counts=True)
    starts, result = torch.cat([terms.new_zeros(1), terms.cumsum(0)]), torch.zeros(len(places))
    for part, chosen in equal_runs(starts):
        chosen = order[chosen]
        factors = like(left, left[entry[chosen]][:, None]), like(right, right[partner[chosen]][:, :, None])
        result[part] = machine.rules[_aten.bmm.default](machine, *factors)[:, 0, 0]
    width = max(1, b.shape[1])
    found = of_coo(torch.stack([places // width, places % width]), result, torch.Size((a.shape[0], b.shape[1])))
    return marked(machine, found if a.layout is COO else found.to_sparse(layout=a.layout))


@register(_aten._sparse_addmm.default, family="sparse")
def sparse_addmm(machine: Machine, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _product(machine, a, b, c, beta=beta, alpha=alpha)


def _nonzero_rows(machine: Machine, a: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows of a matrix have entries, and the matrix of these alone."""
    a = as_coo(machine, a)
    rows, own = torch.unique_consecutive(a._indices()[0], return_inverse=True)
    return rows, of_coo(torch.stack([own, a._indices()[1]]), a._values(), torch.Size((len(rows), a.shape[1])))


@register(_aten.hspmm.default, family="sparse")
def hybrid_product(machine: Machine, a: Tensor, b: Tensor) -> Tensor:
    """a @ b of a sparse and a dense matrix, which stores a dense row for each row of a that has entries."""
    accepted = _aten.hspmm.default(a, b)  # or torch's own error
    if a.dtype is not torch.float32:
        return accepted
    rows, matrix = _nonzero_rows(machine, a)
    result = _product(machine, matrix, b)
    return torch.sparse_coo_tensor(rows[None], result, accepted.shape, is_coalesced=False, check_invariants=False)


@register(_aten.sspaddmm.out, family="sparse")  # as which the other form arrives
def sparse_sum_with_product(
    machine: Machine, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1, out: Tensor
) -> Tensor:
    """The entries of c times beta, then those of a @ b times alpha: what lies in one place is not added yet, as in torch."""
    above = machine.operand(marks.stored(c)).clone()  # c may be `out`
    accepted = _aten.sspaddmm.out(c, a, b, beta=beta, alpha=alpha, out=out)  # or torch's own error
    if a.dtype is torch.float32:
        above = above if beta == 1 else machine.rules[_aten.mul.Tensor](machine, above, beta)
        own = _product(machine, _nonzero_rows(machine, a)[1], b, alpha=alpha)
        accepted._values().copy_(torch.cat([above, own.flatten()]))
    return marked(machine, accepted)


@register(_aten.sparse_sampled_addmm.default, family="sparse")
def sampled_addmm(machine: Machine, x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * x + alpha * (a @ b) where x has entries: for each of them one sum over k, through the accumulator."""
    accepted = _aten.sparse_sampled_addmm.default(x, a, b, beta=beta, alpha=alpha)  # or torch's own error
    if x.dtype is not torch.float32:
        return accepted
    x, a, b = read(machine, x), machine.operand(a), machine.operand(b)
    counts = accepted.crow_indices().diff().flatten()  # of every row of every matrix of a batch
    rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
    columns = accepted.col_indices().flatten() + rows // max(1, a.shape[-2]) * b.shape[-1]
    left, right = a.reshape(-1, a.shape[-1]), b.mT.reshape(-1, b.shape[-2])
    above = x.values().expand(accepted.values().shape).flatten()
    result = torch.zeros(len(rows))
    for _, entries in equal_runs(torch.arange(len(rows) + 1), a.shape[-1]):
        chosen = entries[:, 0]
        factors = like(a, left[rows[chosen]][:, None]), like(b, right[columns[chosen]][:, :, None])
        addend = like(x.values(), above[entries][:, None])
        own = machine.rules[_aten.baddbmm.default](machine, addend, *factors, beta=beta, alpha=alpha)
        result[chosen] = own[:, 0, 0]
    return marked(machine, with_values(accepted, machine.exact(result.reshape(accepted.values().shape))))


def _reduced_forward(machine: Machine, x: Tensor, b: Tensor, reduce: str) -> tuple[Tensor, Tensor]:
    """Of each row of products value * b[column] their sum, mean, maximum or minimum, and which entry an extreme came from."""
    begins, columns, values = _rows(machine, x)
    places = torch.full((x.shape[0], b.shape[1]), len(values))
    with machine.dispatching():
        if reduce in ("sum", "mean"):
            total = x @ b
            counts = begins.diff().clamp(min=1)[:, None].to(b.dtype)
            return total if reduce == "sum" else total / counts, torch.empty(0, dtype=torch.int64)
        result = torch.zeros(x.shape[0], b.shape[1])
        for rows, entries in equal_runs(begins, b.shape[1]):
            if entries.shape[1]:
                products = values[entries][:, :, None] * b[columns[entries]]
                result[rows], first = products.max(1) if reduce == "amax" else products.min(1)
                places[rows] = entries.gather(1, first)
    return result, places


@register(_aten._sparse_mm_reduce_impl.default, family="sparse")
def mm_reduce(machine: Machine, x: Tensor, b: Tensor, reduce: str) -> tuple[Tensor, Tensor]:
    """Each operation rounds: the products of "amax" and "amin", the sum and the quotient of "mean"."""
    accepted = _aten._sparse_mm_reduce_impl.default(x, b, reduce)  # or torch's own error
    if x.dtype is not torch.float32:
        return accepted
    result, places = _reduced_forward(machine, x, b, reduce)
    return result, places if accepted[1].numel() else accepted[1]  # kept where there is a gradient


@register(_aten._sparse_mm_reduce_impl_backward.default, family="sparse")
def mm_reduce_backward(
    machine: Machine, x: Tensor, gradient: Tensor, b: Tensor, reduce: str, places: Tensor, output_mask: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the entries of x, each a sum over columns, and of b, each over the rows that it had a part in."""
    if x.dtype is not torch.float32:
        return _aten._sparse_mm_reduce_impl_backward.default(x, gradient, b, reduce, places, output_mask)
    begins, columns, values = _rows(machine, x)
    of_x = of_b = None
    with machine.dispatching():
        if reduce == "mean":
            gradient = gradient / begins.diff().clamp(min=1)[:, None].to(gradient.dtype)
        if reduce in ("sum", "mean"):
            if output_mask[0]:
                of_x = torch.sparse.sampled_addmm(x, gradient, b.t(), beta=0.0)
            return of_x, x.t() @ gradient if output_mask[1] else None
        rows, across = (places < len(values)).nonzero(as_tuple=True)
        entries = places[rows, across]
        slope = gradient[rows, across]
        if output_mask[0]:
            own = slope * b[columns[entries], across]
            of_x = with_values(x, torch.zeros_like(values).index_add(0, entries, own))
        if output_mask[1]:
            of_b = torch.zeros_like(b).index_put((columns[entries], across), slope * values[entries], accumulate=True)
    return of_x, of_b
