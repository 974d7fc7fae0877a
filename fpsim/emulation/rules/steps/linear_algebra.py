"""Linear algebra by the textbook's algorithms: elimination and substitution.

Products of more than one term go through the accumulator; everything else rounds once for each element. (Golub and Van Loan,
Matrix Computations, 4th edition: algorithms 3.1.1 and 3.4.1.) Singular values, eigenvalues and least squares have
no steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from fpsim.emulation.registry import steps

Tensor = torch.Tensor


def each(function: Callable[..., Any], *stacks: Tensor) -> Any:
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
    return each(lambda matrix, right: _substitute(matrix, right, upper, unitriangular), a, b)


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
    lu, pivots, info = each(lambda matrix: _eliminate(matrix, pivot), a)
    check(info, check_errors, "lu_factor")
    return lu, pivots, info


def check(info: Tensor, wanted: bool, name: str) -> None:
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
    permutation, lower, upper = each(lambda matrix: _unpacked(matrix, pivot), a)
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
    return each(lambda f, p, right: _solve_factored(f, p, right, adjoint), factors, pivots.unsqueeze(-1), b)


@steps("_linalg_solve_ex")
def solve_ex(
    a: Tensor, b: Tensor, *, left: bool = True, check_errors: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    factors, pivots, info = lu_factor_ex(a)
    check(info, check_errors, "solve")
    vector = b.dim() == 1 or (a.dim() - 1 == b.dim() and b.shape == a.shape[:-1])
    solution = lu_solve(factors, pivots, b.unsqueeze(-1) if vector else b, left=left or vector)
    return (solution.squeeze(-1) if vector else solution), factors, pivots, info


@steps("linalg_inv_ex")
def inv_ex(a: Tensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    factors, pivots, info = lu_factor_ex(a)
    check(info, check_errors, "inv")
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


# The exponential


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
