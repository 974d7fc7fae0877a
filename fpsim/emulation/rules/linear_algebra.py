"""Matrix factorizations, each one kernel: LAPACK in float64, one rounding of each result.

They come from the LAPACK at hand: their float64 results, and rarely a rounded bit, depend on it. Thresholds that a script
leaves out are those of the float32 tensors that it has, not of the float64 inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.machine.parts import COMPLEX64
from fpsim.emulation.machine.protocol import Machine, MaybeTensor
from fpsim.emulation.registry import Rule, register_complex, register_functional
from fpsim.emulation.rules.whole import whole_rule
from fpsim.emulation.schemas import mapped, names, tensors_in

_FLOAT32, _FLOAT64 = torch.float32, torch.float64
_WIDE = {_FLOAT32: _FLOAT64, COMPLEX64: torch.complex128}

FACTORIZATIONS = names(
    """
    _linalg_svd linalg_qr linalg_inv_ex linalg_lu_factor_ex linalg_lu _linalg_eigh _linalg_solve_ex
    linalg_lu_solve _linalg_slogdet _linalg_det linalg_cholesky_ex linalg_ldl_factor_ex linalg_ldl_solve
    cholesky cholesky_inverse cholesky_solve geqrf ormqr triangular_solve linalg_householder_product
    linalg_solve_triangular linalg_matrix_exp linalg_eig linalg_eigvals _linalg_eigvals
    """
)


def _threshold(x: Tensor) -> float:
    """Relative to the largest singular value, what torch neglects in a float32 matrix."""
    return max(x.shape[-2:]) * torch.finfo(_FLOAT32).eps


def _pseudoinverse_rule(op: torch._ops.OpOverload) -> Rule | None:
    if op._overloadname != "atol_rtol_tensor":
        return None

    def pseudoinverse(
        machine: Machine, x: Tensor, *, atol: MaybeTensor = None, rtol: MaybeTensor = None, hermitian: bool = False
    ) -> Tensor:
        if x.dtype not in _WIDE:
            return op(machine.operand(x), atol=atol, rtol=rtol, hermitian=hermitian)
        machine.whole()
        if rtol is None:
            rtol = torch.tensor(_threshold(x), dtype=_FLOAT64)
            rtol = rtol if atol is None else torch.where(atol > 0, 0.0, rtol)
        atol, rtol = (None if item is None else item.double() for item in (atol, rtol))
        return machine.finish(op(machine.operand(x).to(_WIDE[x.dtype]), atol=atol, rtol=rtol, hermitian=hermitian))

    return pseudoinverse


def _complex_rule(op: torch._ops.OpOverload) -> Rule:
    """In complex128, each part of each result rounded once."""

    def factorize(machine: Machine, *args: Any, **kwargs: Any) -> Any:
        if any(item.dtype not in _WIDE for item in tensors_in((args, kwargs)) if item.is_floating_point() or item.is_complex()):
            return op(*args, **kwargs)  # complex128 means itself; or torch's own error
        machine.whole()
        wide = mapped(lambda item: machine.operand(item).to(_WIDE.get(item.dtype, item.dtype)), (args, kwargs))
        return mapped(machine.finish, op(*wide[0], **wide[1]))

    return factorize


def _least_squares_rule(op: torch._ops.OpOverload, rule: Callable[[torch._ops.OpOverload], Rule] = whole_rule) -> Rule:
    whole = rule(op)

    def least_squares(machine: Machine, a: Tensor, b: Tensor, rcond: float | None = None, *, driver: str | None = None) -> Any:
        return whole(machine, a, b, _threshold(a) if rcond is None and a.dtype in _WIDE else rcond, driver=driver)

    return least_squares


register_functional(FACTORIZATIONS, "linear algebra", whole_rule)
register_functional("linalg_pinv", "linear algebra", _pseudoinverse_rule)
register_functional("linalg_lstsq", "linear algebra", _least_squares_rule)
register_complex(FACTORIZATIONS, _complex_rule)
register_complex(["linalg_pinv"], _pseudoinverse_rule)
register_complex(["linalg_lstsq"], lambda op: _least_squares_rule(op, _complex_rule))
