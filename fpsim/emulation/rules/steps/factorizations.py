"""Cholesky's factors and Householder's reflections (Golub and Van Loan, 4th edition: algorithms 4.2.1 and 5.1.1), as
`linear_algebra`'s."""

from __future__ import annotations

import torch

from fpsim.emulation.registry import steps
from fpsim.emulation.rules.steps.linear_algebra import check, each, solve_triangular

Tensor = torch.Tensor


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
    lower, info = each(_cholesky, a.mT if upper else a)
    check(info, check_errors, "cholesky")
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
    return each(_reflections, a)


def _accumulated(vectors: Tensor, taus: Tensor, onto: Tensor, transpose: bool = False) -> Tensor:
    """The product of the reflections (or its transpose) times a matrix."""
    count, rows = taus.shape[0], vectors.shape[0]
    for k in range(count) if transpose else reversed(range(count)):
        vector = torch.cat([torch.ones(1, dtype=vectors.dtype), vectors[k + 1 :, k]])
        onto = torch.cat([onto[:k], _reflect(onto[k:rows], vector, taus[k])])
    return onto


@steps("linalg_householder_product")
def householder_product(vectors: Tensor, taus: Tensor) -> Tensor:
    return each(
        lambda v, t: _accumulated(v, t.reshape(-1), torch.eye(*v.shape, dtype=v.dtype)), vectors, taus.unsqueeze(-1)
    )


@steps("ormqr")
def ormqr(vectors: Tensor, taus: Tensor, other: Tensor, left: bool = True, transpose: bool = False) -> Tensor:
    if not left:
        return ormqr(vectors, taus, other.mT, True, not transpose).mT.contiguous()
    return each(lambda v, t, m: _accumulated(v, t.reshape(-1), m, transpose), vectors, taus.unsqueeze(-1), other)


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
    q = each(lambda v, t, m: _accumulated(v, t.reshape(-1), m), work, taus.unsqueeze(-1), identity)
    return q, (triangle if mode == "complete" else triangle[..., :small, :]).contiguous()
