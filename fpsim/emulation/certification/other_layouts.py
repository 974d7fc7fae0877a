"""Complex numbers and sparse matrices in a trace: the real tensors that hold their numbers, and products written down in those.

A complex tensor is its parts along a last axis, a sparse matrix its stored values. A complex product is the real one that the
machine makes, of twice as many terms: rows (re, im) of the left factor, the matrix ((re, im), (-im, re)) of the right. A sparse
product has a sum for each row, of its stored entries. Elementwise, parts are multiplied by ((re, im), (-im, re)) of the other
factor, rounded once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from fpsim.emulation.certification.products import bilinear, slopes_of_products
from fpsim.emulation.certification.slopes import Slope, linear, upwards
from fpsim.emulation.certification.table import TABLE, Call, LibraryArithmetic, Products, free, multiplied, register
from fpsim.emulation.machine import marks
from fpsim.emulation.rules.sparse_elementwise import OF_ENTRIES
from fpsim.emulation.schemas import mapped, name_of, names

_aten = torch.ops.aten
_Tensor = torch.Tensor
_without_dispatch = torch._C._DisableTorchDispatch  # type: ignore[attr-defined]

#: What is followed, where an operation is not.
OF_SPARSE = (
    "of sparse matrices certification follows products with dense ones (factors of 1), functions of each entry, what moves "
    "entries, and to_dense(), where each place has one entry (coalesce before): elsewhere compute with to_dense()"
)
OF_COMPLEX = (
    "of complex numbers certification follows products with factors of 1, sums and elementwise products of two tensors, such "
    "with real factors, and what moves or shows numbers: elsewhere compute with real and imaginary parts"
)


def real_form(tensor: _Tensor) -> _Tensor:
    """The real tensor that holds a tensor's numbers; a dense real one is that itself."""
    if tensor.layout is torch.strided and not tensor.is_complex():
        return tensor
    with _without_dispatch():
        tensor = marks.stored(tensor)
        return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


# Complex numbers


def interleaved(parts: _Tensor, is_vector: bool) -> _Tensor:
    """The rows of a left factor: (..., i, k, 2) as (..., i, 2 k)."""
    parts = parts.unsqueeze(0) if is_vector else parts
    return parts.flatten(-2)


def _matrix(parts: _Tensor, is_vector: bool, sign: float) -> _Tensor:
    real, imaginary = (parts.unsqueeze(1) if is_vector else parts).unbind(-1)
    rows = torch.stack([torch.stack([real, imaginary], -1), torch.stack([sign * imaginary, real], -1)], -3)
    return rows.flatten(-2).flatten(-3, -2)


def as_matrix(parts: _Tensor, is_vector: bool) -> _Tensor:
    """The matrix of a right factor: (..., k, j, 2) as (..., 2 k, 2 j)."""
    return _matrix(parts, is_vector, -1.0)


def as_addend(parts: _Tensor, is_vector: bool) -> _Tensor:
    """What is added to a product: (..., j, 2) as (..., 2 j); a vector's is that of one column."""
    return parts if is_vector else parts.flatten(-2)


def as_parts(product: _Tensor, shape: tuple[int, ...]) -> _Tensor:
    return product.reshape(*shape, 2)


def conjugate(parts: _Tensor) -> _Tensor:
    return parts * torch.tensor([1.0, -1.0], dtype=parts.dtype)


def _factors(parts: _Tensor, sign: float) -> _Tensor:
    real, imaginary = parts.unbind(-1)
    return torch.stack([torch.stack([real, imaginary], -1), torch.stack([sign * imaginary, real], -1)], -2)


def as_factors(parts: _Tensor) -> _Tensor:
    """What the parts of an element's other factor are multiplied by: (..., 2) as (..., 2, 2)."""
    return _factors(parts, -1.0)


def times(parts: _Tensor, factors: _Tensor) -> _Tensor:
    """The product of elements, one by `as_factors`."""
    return (parts.unsqueeze(-1) * factors).sum(-2)


def times_real(parts: _Tensor, factor: _Tensor) -> _Tensor:
    return parts * factor.unsqueeze(-1)


def _cost_of_product(call: Call, unit: LibraryArithmetic) -> _Tensor:
    """Two products and their sum."""
    left, right = call.operands
    total = upwards(times(left.magnitude, right.magnitude), 2)
    return total * (4 * unit.roundoff) + 4 * unit.underflow


def _matrix_slopes(call: Call) -> list[Slope]:
    is_vector = call.args[1]
    return [Slope(lambda t: as_matrix(t, is_vector), lambda t: _matrix(t, is_vector, 1.0))]


register(as_matrix, "complex", _matrix_slopes, kind="exact", cost=free)
register(conjugate, "complex", lambda call: [Slope(conjugate, lambda t: t)], kind="exact", cost=free)
register(
    as_factors, "complex", lambda call: [Slope(as_factors, lambda t: _factors(t, 1.0))], kind="exact", cost=free
)
register(times, "complex", lambda call: bilinear(call.operands[0], call.operands[1], times, 2), cost=_cost_of_product)
register(times_real, "complex", lambda call: bilinear(call.operands[0], call.operands[1], times_real, 1))
for _move in (interleaved, as_addend, as_parts):
    register(_move, "structure", lambda call: [linear(lambda t: call.run([t]))], kind="exact", cost=free)


@functools.cache
def on_parts(op: torch._ops.OpOverload) -> Callable[..., Any] | None:
    """An operation on parts that moves complex numbers as `op` does; None where it does anything else."""
    row = TABLE.get(op)
    if row is None or row.family != "structure" or row.known is not None or row.kind != "exact":
        return None

    def move(*args: Any, **kwargs: Any) -> Any:
        pairs, named = mapped(lambda t: torch.view_as_complex(t.contiguous()) if t.is_floating_point() else t, (args, kwargs))
        return mapped(torch.view_as_real, op(*pairs, **named))

    move.__name__ = str(op)
    register(move, row.family, row.slopes, kind=row.kind, cost=row.cost, outputs=row.outputs)
    return move


#: Products, and the real ones that they are made as.
PRODUCTS = {
    "mm": _aten.mm.default, "bmm": _aten.bmm.default, "addmm": _aten.addmm.default, "baddbmm": _aten.baddbmm.default,
    "mv": _aten.mm.default, "addmv": _aten.addmm.default, "dot": _aten.mm.default, "vdot": _aten.mm.default,
}  # fmt: skip


class Writer(Protocol):
    """What writes a run down."""

    def step(self, op: Callable[..., Any], args: Sequence[Any], result: Any) -> Any:
        """Write down one step of an operation, and what it gave; returns that."""

    def value(self, tensor: _Tensor, op: Any) -> _Tensor:
        """The real form of what the operation read the tensor as."""


def write(writer: Writer, op: torch._ops.OpOverload, args: Sequence[Any], result: Any, factors: dict[str, Any]) -> bool:
    """Write down a product, or a move of complex numbers; False for any other operation."""
    name, tensors = name_of(op), [item for item in args if isinstance(item, _Tensor)]
    if any(item.layout is not torch.strided for item in tensors):
        if name in SPARSE_PRODUCTS:
            return _write_sparse(writer, op, tensors, result, factors)
        return len(tensors) == 1 and _write_entries(writer, op, name, args, result)
    if name in PRODUCTS:
        return _write_product(writer, op, tensors, result, factors)
    if name in ("_conj", "conj_physical"):
        writer.step(conjugate, args, result)
        return True
    if name == "complex" and tensors[0].shape == tensors[1].shape:
        writer.step(_aten.stack.default, (tensors, -1), result)
        return True
    if name == "mul" and _write_elementwise(writer, op, args, result):
        return True
    if name == "neg":
        writer.step(op, args, result)
        return True
    if name in ("add", "sub") and len(tensors) == 2 and all(item.is_complex() for item in tensors) and not factors:
        writer.step(op, args, result)  # part by part
        return True
    move = on_parts(op)
    if move is not None and not factors:
        writer.step(move, args, result)
    return move is not None and not factors


def _write_elementwise(writer: Writer, op: Any, args: Sequence[Any], result: _Tensor) -> bool:
    """A product of elements: of two complex numbers, of one and a real tensor, or of one and a real number."""
    a, b = sorted(args, key=lambda item: not (isinstance(item, _Tensor) and item.is_complex()))
    if isinstance(b, _Tensor) and b.is_complex():
        factors = as_factors(writer.value(b, op))
        writer.step(times, (a, writer.step(as_factors, (b,), factors)), result)
    elif isinstance(b, _Tensor) and b.dtype is torch.float32:
        writer.step(times_real, (a, b), result)
    elif isinstance(b, (int, float)):
        writer.step(op, (a, b), result)
    else:
        return False
    return True


def _write_product(writer: Writer, op: Any, tensors: list[_Tensor], result: _Tensor, factors: dict[str, Any]) -> bool:
    """Each factor as the real one that the machine made, and the real product."""
    if any(factor != 1 for factor in factors.values()) or not all(item.is_complex() for item in tensors):
        return False
    name, (*addends, a, b) = name_of(op), tensors
    is_dot, is_vector = name in ("dot", "vdot"), name in ("mv", "addmv", "dot", "vdot")
    left = writer.value(a, op)
    if name == "vdot":
        left = conjugate(left)
        a = writer.step(conjugate, (a,), left)
    parts = [
        *(writer.step(as_addend, (c, is_vector), as_addend(writer.value(c, op), is_vector).clone()) for c in addends),
        writer.step(interleaved, (a, is_dot), interleaved(left, is_dot).clone()),
        writer.step(as_matrix, (b, is_vector), as_matrix(writer.value(b, op), is_vector)),
    ]
    shape = (*parts[-2].shape[:-1], parts[-1].shape[-1])
    made = writer.step(PRODUCTS[name], parts, real_form(result).reshape(shape).clone())
    writer.step(as_parts, (made, tuple(result.shape)), result)
    return True


# Sparse matrices

_BY_ENTRY = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


@dataclass(frozen=True, eq=False)
class Pattern:
    """Where the stored values of a matrix are."""

    rows: _Tensor
    columns: _Tensor
    shape: tuple[int, int]

    @staticmethod
    def of(matrix: _Tensor) -> Pattern | None:
        """None where several entries have one place, and are added before they are multiplied, or where entries are blocks."""
        if matrix.layout not in _BY_ENTRY or matrix.dim() != 2 or matrix.dense_dim():
            return None
        with _without_dispatch():
            if matrix.layout is torch.sparse_coo:
                rows, columns = matrix._indices()
            else:
                is_row = matrix.layout is torch.sparse_csr
                begins = matrix.crow_indices() if is_row else matrix.ccol_indices()
                long = torch.repeat_interleave(torch.arange(len(begins) - 1), begins.diff())
                short = matrix.col_indices() if is_row else matrix.row_indices()
                rows, columns = (long, short) if is_row else (short, long)
            pattern = Pattern(rows.long(), columns.long(), (matrix.shape[0], matrix.shape[1]))
            return pattern if len(pattern.places.unique()) == len(rows) else None

    @functools.cached_property
    def turned(self) -> Pattern:
        """That of the transposed matrix."""
        return Pattern(self.columns, self.rows, self.shape[::-1])

    @functools.cached_property
    def places(self) -> _Tensor:
        """The number of each entry's place, in row-major order."""
        return self.rows * self.shape[1] + self.columns

    @functools.cached_property
    def terms(self) -> int:
        """The most entries of a row."""
        return int(torch.bincount(self.rows, minlength=1).max()) if len(self.rows) else 0

    def product(self, values: _Tensor, dense: _Tensor) -> _Tensor:
        """The matrix of these values times a dense one."""
        terms = values.reshape(-1, *[1] * (dense.dim() - 1)) * dense[self.columns]
        return torch.zeros(self.shape[0], *dense.shape[1:], dtype=terms.dtype).index_add(0, self.rows, terms)


def sparse_product(values: _Tensor, dense: _Tensor, pattern: Pattern, is_right: bool) -> _Tensor:
    """A sparse matrix times a dense one, or the other way round."""
    return pattern.turned.product(values, dense.t()).t() if is_right else pattern.product(values, dense)


def sparse_product_added(addend: _Tensor, values: _Tensor, dense: _Tensor, pattern: Pattern, is_right: bool) -> _Tensor:
    product = sparse_product(values, dense, pattern, is_right)
    return addend.expand(product.shape) + product


def dense_form(values: _Tensor, pattern: Pattern) -> _Tensor:
    """The matrix, with 0 where nothing is stored."""
    return torch.zeros(pattern.shape, dtype=values.dtype).index_put((pattern.rows, pattern.columns), values)


register(dense_form, "structure", lambda call: [linear(lambda t: call.run([t]))], kind="exact", cost=free)

#: What stores the entries of one matrix in another order, or beside zeros.
_MOVES = names("_coalesce clone _to_sparse _to_sparse_csr _to_sparse_csc _to_dense")


def _write_entries(writer: Writer, op: Any, name: str, args: Sequence[Any], result: Any) -> bool:
    """What moves the entries of one matrix, or does the same to each of them."""
    matrix = args[0]
    source = Pattern.of(matrix) if isinstance(matrix, _Tensor) else None
    if source is None or not (name in _MOVES or (name in OF_ENTRIES and op in TABLE)):
        return False
    if result.layout is torch.strided:
        writer.step(dense_form, (matrix, source), result)
        return True
    target = Pattern.of(result)
    if target is None or not torch.equal(source.places.sort().values, target.places.sort().values):
        return False
    order = source.places.argsort()[target.places.argsort().argsort()]
    if name in _MOVES:
        writer.step(_aten.index_select.default, (matrix, 0, order), result)
    elif torch.equal(source.places, target.places):
        writer.step(op, args, result)
    else:
        return False
    return True


SPARSE_PRODUCTS = ("mm", "mv", "addmm", "addmv", "_sparse_addmm")


def _write_sparse(writer: Writer, op: Any, tensors: list[_Tensor], result: _Tensor, factors: dict[str, Any]) -> bool:
    *addends, a, b = tensors
    is_right = a.layout is torch.strided
    pattern = Pattern.of(b if is_right else a)
    if pattern is None or factors.get("alpha", 1) != 1 or factors.get("beta", 1) not in (0, 1):
        return False
    operands = ((b, a) if is_right else (a, b)), (pattern, is_right)
    if addends and factors.get("beta", 1):
        writer.step(sparse_product_added, (*addends, *operands[0], *operands[1]), result)
    else:
        writer.step(sparse_product, (*operands[0], *operands[1]), result)
    return True


def _sparse_products(call: Call) -> Products:
    *addends, values, dense = call.operands
    pattern, is_right = call.args[-2:]

    def multiply(a: _Tensor, b: _Tensor) -> _Tensor:
        return sparse_product(a, b, pattern, is_right)

    terms = (pattern.turned if is_right else pattern).terms
    return Products(multiply, (values, dense), terms, addends[0] if addends else None)


for _op in (sparse_product, sparse_product_added):
    register(
        _op, "sparse", slopes_of_products(_sparse_products), kind="accumulated", cost=multiplied, products=_sparse_products
    )
