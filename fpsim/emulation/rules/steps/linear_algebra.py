"""Linear algebra by the textbook's algorithms: elimination, Cholesky, substitution, Householder reflections.

Products of more than one term go through the accumulator; everything else rounds once for each element. (Golub and Van Loan,
Matrix Computations, 4th edition: algorithms 3.1.1, 3.4.1, 4.2.1 and 5.1.1.) Singular values, eigenvalues and least squares have
no steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from fpsim.emulation.registry import steps

Tensor = torch.Tensor


def _each(function: Callable[..., Any], *stacks: Tensor) -> Any:
    """A function of matrices over stacks of them; the results are stacked again."""
    batch = torch.broadcast_shapes(*(stack.shape[:-2] for stack in stacks))
    shapes = [stack.shape[-2:] for stack in stacks]
    full = [
        stack.expand([*batch, *shape]).reshape([math.prod(batch), *shape])
        for stack, shape in zip(stacks, shapes, strict=True)
    ]
    if not full[0].shape[0]:
        empty = [item.new_zeros(item.shape[1:]) for item in full]
        results = function(*empty)
        shaped = [item.new_zeros([*batch, *item.shape]) for item in _tuple(results)]
    else:
        parts = [_tuple(function(*matrices)) for matrices in zip(*full, strict=True)]
        shaped = [torch.stack(items).reshape([*batch, *items[0].shape]) for items in zip(*parts, strict=True)]
    return tuple(shaped) if len(shaped) > 1 else shaped[0]


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


# Substitution


def _substitute(a: Tensor, b: Tensor, upper: bool, unit: bool) -> Tensor:
    """x of a x = b, a row after the other: (b - a[i, known] x[known]) / a[i, i]."""
    size = a.shape[0]
    rows: list[Tensor] = [b[0:0]] * size
    done: list[int] = []
    for i in reversed(range(size)) if upper else range(size):
        right = b[i : i + 1]
        if done:
            solved = torch.cat([rows[k] for k in done])
            coefficients = torch.cat([a[i : i + 1, k : k + 1] for k in done], 1)
            right = right - coefficients @ solved
        rows[i] = right if unit else right / a[i, i]
        done = sorted([*done, i])
    return torch.cat(rows) if rows else b.clone()


@steps("linalg_solve_triangular")
def solve_triangular(a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    if not left:
        return solve_triangular(a.mT, b.mT, upper=not upper, unitriangular=unitriangular).mT.contiguous()
    return _each(lambda matrix, right: _substitute(matrix, right, upper, unitriangular), a, b)


@steps("triangular_solve")
def triangular_solve(
    b: Tensor, a: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> tuple[Tensor, Tensor]:
    matrix = a.mT if transpose else a
    return solve_triangular(matrix, b, upper=upper != transpose, unitriangular=unitriangular), a.clone()


# Elimination


def _eliminate(a: Tensor, pivot: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(LU, pivots from 1, the first row whose pivot is 0 or 0)."""
    rows, columns = a.shape
    lu, pivots, singular = a.clone(), [], 0
    for k in range(min(rows, columns)):
        best = k + int(lu[k:, k].abs().argmax().item()) if pivot else k
        pivots.append(best + 1)
        if best != k:
            order = list(range(rows))
            order[k], order[best] = best, k
            lu = lu[order]
        if float(lu[k, k].item()) == 0.0:
            singular = singular or k + 1
            continue
        factors = lu[k + 1 :, k : k + 1] / lu[k, k]
        rest = lu[k + 1 :, k + 1 :] - factors * lu[k : k + 1, k + 1 :]
        lu = torch.cat([lu[: k + 1], torch.cat([lu[k + 1 :, :k], factors, rest], 1)])
    return lu, torch.tensor(pivots, dtype=torch.int32), torch.tensor(singular, dtype=torch.int32)


@steps("linalg_lu_factor_ex")
def lu_factor_ex(a: Tensor, *, pivot: bool = True, check_errors: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    lu, pivots, info = _each(lambda matrix: _eliminate(matrix, pivot), a)
    _check(info, check_errors, "lu_factor")
    return lu, pivots, info


def _check(info: Tensor, wanted: bool, name: str) -> None:
    if wanted and bool((info != 0).any()):
        raise torch.linalg.LinAlgError(f"linalg.{name}: a matrix is singular, or not positive definite, in this arithmetic")


def _permutation(pivots: Tensor, rows: int) -> list[int]:
    order = list(range(rows))
    for k, pivot in enumerate(pivots.tolist()):
        order[k], order[pivot - 1] = order[pivot - 1], order[k]
    return order


def _unpacked(matrix: Tensor, pivot: bool) -> tuple[Tensor, Tensor, Tensor]:
    lu, pivots, _ = _eliminate(matrix, pivot)
    rows, columns = matrix.shape
    small = min(rows, columns)
    lower = lu[:, :small].tril(-1) + torch.eye(rows, small, dtype=lu.dtype)  # exact: zeros meet ones
    order = _permutation(pivots, rows) if pivot else list(range(rows))
    return torch.eye(rows, dtype=lu.dtype)[:, order] if rows else lu.new_zeros(0, 0), lower, lu[:small].triu()


@steps("linalg_lu")
def lu(a: Tensor, *, pivot: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    permutation, lower, upper = _each(lambda matrix: _unpacked(matrix, pivot), a)
    return (permutation if pivot else a.new_zeros(0)), lower, upper


def _solve_factored(lu: Tensor, pivots: Tensor, b: Tensor, adjoint: bool) -> Tensor:
    order = _permutation(pivots.reshape(-1), lu.shape[0])
    if not adjoint:
        return _substitute(lu, _substitute(lu, b[order], False, True), True, False)
    solved = _substitute(lu.mT, _substitute(lu.mT, b, False, False), True, True)
    back = [order.index(k) for k in range(len(order))]
    return solved[back]


@steps("linalg_lu_solve")
def lu_solve(factors: Tensor, pivots: Tensor, b: Tensor, *, left: bool = True, adjoint: bool = False) -> Tensor:
    if not left:
        return lu_solve(factors, pivots, b.mT, adjoint=not adjoint).mT.contiguous()
    return _each(lambda f, p, right: _solve_factored(f, p, right, adjoint), factors, pivots.unsqueeze(-1), b)


@steps("_linalg_solve_ex")
def solve_ex(
    a: Tensor, b: Tensor, *, left: bool = True, check_errors: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    factors, pivots, info = lu_factor_ex(a)
    _check(info, check_errors, "solve")
    vector = b.dim() == 1 or (a.dim() - 1 == b.dim() and b.shape == a.shape[:-1])
    solution = lu_solve(factors, pivots, b.unsqueeze(-1) if vector else b, left=left or vector)
    return (solution.squeeze(-1) if vector else solution), factors, pivots, info


@steps("linalg_inv_ex")
def inv_ex(a: Tensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    factors, pivots, info = lu_factor_ex(a)
    _check(info, check_errors, "inv")
    return lu_solve(factors, pivots, torch.eye(a.shape[-1], dtype=a.dtype).expand(a.shape)), info


def _factored_by_columns(a: Tensor) -> tuple[Tensor, Tensor]:
    """LU and pivots of the matrix that LAPACK, which stores columns, sees: a contiguous one's transpose.

    torch's gradients of determinants count on that.
    """
    return lu_factor_ex(a.mT if a.is_contiguous() else a)[:2]


def _signed_diagonal(factors: Tensor, pivots: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal of U, and -1 to the number of exchanges."""
    places = torch.arange(1, pivots.shape[-1] + 1, dtype=pivots.dtype)
    exchanges = (pivots != places).sum(-1)
    return factors.diagonal(dim1=-2, dim2=-1), torch.where(exchanges % 2 == 1, -1.0, 1.0)


@steps("_linalg_det")
def det(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    factors, pivots = _factored_by_columns(a)
    diagonal, sign = _signed_diagonal(factors, pivots)
    return diagonal.prod(-1) * sign, factors, pivots


@steps("_linalg_slogdet")
def slogdet(a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    factors, pivots = _factored_by_columns(a)
    diagonal, sign = _signed_diagonal(factors, pivots)
    return diagonal.sign().prod(-1) * sign, diagonal.abs().log().sum(-1), factors, pivots


# Cholesky


def _cholesky(a: Tensor) -> tuple[Tensor, Tensor]:
    """The lower factor, and the first leading minor that is not positive or 0."""
    size = a.shape[0]
    columns: list[Tensor] = []
    failed = 0
    for k in range(size):
        column = a[k:, k]
        if columns:
            done_columns = torch.stack([c[k:] for c in columns], 1)
            column = column - (done_columns @ done_columns[0])
        if not float(column[0].item()) > 0.0:
            failed = failed or k + 1
        column = column / column[0].sqrt()
        columns.append(torch.cat([torch.zeros(k, dtype=a.dtype), column]))
    return (torch.stack(columns, 1) if columns else a.clone()), torch.tensor(failed, dtype=torch.int32)


@steps("linalg_cholesky_ex")
def cholesky_ex(a: Tensor, *, upper: bool = False, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    lower, info = _each(_cholesky, a.mT if upper else a)
    _check(info, check_errors, "cholesky")
    return (lower.mT.contiguous() if upper else lower), info


@steps("cholesky")
def cholesky(a: Tensor, upper: bool = False) -> Tensor:
    return cholesky_ex(a, upper=upper, check_errors=True)[0]


@steps("cholesky_solve")
def cholesky_solve(b: Tensor, factor: Tensor, upper: bool = False) -> Tensor:
    lower = factor.mT if upper else factor
    return solve_triangular(lower.mT, solve_triangular(lower, b, upper=False), upper=True)


@steps("cholesky_inverse")
def cholesky_inverse(factor: Tensor, upper: bool = False) -> Tensor:
    return cholesky_solve(torch.eye(factor.shape[-1], dtype=factor.dtype).expand(factor.shape), factor, upper)


# Householder reflections


def _reflect(matrix: Tensor, vector: Tensor, tau: Tensor) -> Tensor:
    """(1 - tau v v') matrix."""
    return matrix - vector.unsqueeze(1) * (tau * (vector @ matrix))


def _reflections(a: Tensor) -> tuple[Tensor, Tensor]:
    """LAPACK's form: R above, the reflections' vectors (whose first element is 1) below the diagonal; and tau."""
    rows, columns = a.shape
    work, taus = a.clone(), []
    for k in range(min(rows, columns)):
        column = work[k:, k]
        size = column.square().sum().sqrt()
        if k == rows - 1 or float(column[1:].abs().amax().item()) == 0.0:
            taus.append(torch.zeros((), dtype=a.dtype))
            continue
        head = -torch.copysign(size, column[0])
        taus.append((head - column[0]) / head)
        vector = torch.cat([torch.ones(1, dtype=a.dtype), column[1:] / (column[0] - head)])
        rest = _reflect(work[k:, k + 1 :], vector, taus[-1])
        left = torch.cat([head.reshape(1), vector[1:]]).unsqueeze(1)
        work = torch.cat([work[:k], torch.cat([work[k:, :k], left, rest], 1)])
    return work, torch.stack(taus) if taus else a.new_zeros(0)


@steps("geqrf")
def geqrf(a: Tensor) -> tuple[Tensor, Tensor]:
    return _each(_reflections, a)


def _accumulated(vectors: Tensor, taus: Tensor, onto: Tensor, transpose: bool = False) -> Tensor:
    """The product of the reflections (or its transpose) times a matrix."""
    count, rows = taus.shape[0], vectors.shape[0]
    for k in range(count) if transpose else reversed(range(count)):
        vector = torch.cat([torch.ones(1, dtype=vectors.dtype), vectors[k + 1 :, k]])
        onto = torch.cat([onto[:k], _reflect(onto[k:rows], vector, taus[k])])
    return onto


@steps("linalg_householder_product")
def householder_product(vectors: Tensor, taus: Tensor) -> Tensor:
    return _each(
        lambda v, t: _accumulated(v, t.reshape(-1), torch.eye(*v.shape, dtype=v.dtype)), vectors, taus.unsqueeze(-1)
    )


@steps("ormqr")
def ormqr(vectors: Tensor, taus: Tensor, other: Tensor, left: bool = True, transpose: bool = False) -> Tensor:
    if not left:
        return ormqr(vectors, taus, other.mT, True, not transpose).mT.contiguous()
    return _each(lambda v, t, m: _accumulated(v, t.reshape(-1), m, transpose), vectors, taus.unsqueeze(-1), other)


@steps("linalg_qr")
def qr(a: Tensor, mode: str = "reduced") -> tuple[Tensor, Tensor]:
    work, taus = geqrf(a)
    rows, columns = a.shape[-2:]
    small = min(rows, columns)
    triangle = work.triu()
    if mode == "r":
        return a.new_zeros(0), triangle[..., :small, :].contiguous()
    width = rows if mode == "complete" else small
    identity = torch.eye(rows, width, dtype=a.dtype).expand(*a.shape[:-2], rows, width)
    q = _each(lambda v, t, m: _accumulated(v, t.reshape(-1), m), work, taus.unsqueeze(-1), identity)
    return q, (triangle if mode == "complete" else triangle[..., :small, :]).contiguous()


@steps("linalg_matrix_exp")
def matrix_exp(a: Tensor) -> Tensor:
    """Scaling and squaring: Taylor's polynomial of degree 12 of a / 2^s, by Horner's rule, then squared s times.

    s makes the largest sum of magnitudes of a column at most 1/2: the first term left out is below 2^-45.
    """
    if a.numel() == 0:
        return a.clone()
    largest = float(a.double().abs().sum(-2).amax().item())
    squarings = max(0, math.ceil(math.log2(largest)) + 1) if 0 < largest < math.inf else 0
    scaled = a * 2.0**-squarings
    identity = torch.eye(a.shape[-1], dtype=a.dtype).expand(a.shape)
    result = identity + scaled / 12.0
    for degree in range(11, 0, -1):
        result = identity + (scaled @ result) / float(degree)
    for _ in range(squarings):
        result = result @ result
    return result
