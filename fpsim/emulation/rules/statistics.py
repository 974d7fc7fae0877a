"""Variances and logsumexp: kernels, float64 inside in a fixed order, one rounding; prefix sums by the accumulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsim.backend.numba import softmax, sums64
from fpsim.emulation.machine.marks import array_of
from fpsim.emulation.machine.protocol import Axes, Machine, MaybeDtype
from fpsim.emulation.registry import Rule, itself_in_float64, register, register_functional
from fpsim.emulation.rules.exact import exact_rule
from fpsim.emulation.rules.reductions import axes_of, columns_of, shape_of
from fpsim.sums.prefixes import prefix_axis

_aten = torch.ops.aten
_FLOAT32 = torch.float32


def _moments(rows: np.ndarray, correction: float) -> tuple[np.ndarray, np.ndarray]:
    """Variance and mean of each row in float64, in two passes."""
    count = rows.shape[1]
    mean, squares = np.empty(len(rows)), np.empty(len(rows))
    with np.errstate(divide="ignore", invalid="ignore"):
        sums64.sum_rows(rows, mean)
        mean /= np.float64(count)
        sums64.sum_squares_of_rows(rows - mean[:, None], squares)
        return squares / np.float64(max(count - correction, 0)), mean


def _variance_rule(root: bool, with_mean: bool) -> Any:
    def rule_for(op: torch._ops.OpOverload) -> Rule | None:
        if op._overloadname != "correction":
            return None
        exact = exact_rule(op)

        def variance(
            machine: Machine, x: Tensor, dim: Axes = None, *, correction: float | None = None, keepdim: bool = False
        ) -> Any:
            if x.dtype is not _FLOAT32:
                return exact(machine, x, dim, correction=correction, keepdim=keepdim)
            machine.whole()
            x = machine.operand(x)
            axes = axes_of(dim, x.dim())
            values, mean = _moments(np.ascontiguousarray(columns_of(x, axes).T), 1 if correction is None else correction)
            results = [np.sqrt(values) if root else values, mean]
            shape = shape_of(x, axes, keepdim)
            rounded = [machine.finish(torch.from_numpy(item).reshape(shape)) for item in results[: 1 + with_mean]]
            return tuple(rounded) if with_mean else rounded[0]

        return variance

    return rule_for


for _name, _root, _with_mean in (
    ("var", False, False),
    ("std", True, False),
    ("var_mean", False, True),
    ("std_mean", True, True),
):
    register_functional(_name, "reduction", _variance_rule(_root, _with_mean))


@register(_aten.logsumexp.default, family="reduction")
@itself_in_float64(_aten.logsumexp.default)
def logsumexp(machine: Machine, x: Tensor, dim: list[int], keepdim: bool = False) -> Tensor:
    machine.whole()
    x = machine.floating(x)
    axes = axes_of(dim, x.dim())
    rows = np.ascontiguousarray(columns_of(x, axes).T)
    out = np.empty(len(rows))
    softmax.log_of_sum(rows, out)
    return machine.finish(torch.from_numpy(out).reshape(shape_of(x, axes, keepdim)))


def _cumsum_rule(op: torch._ops.OpOverload) -> Rule | None:
    if op._overloadname != "default":
        return None

    def cumsum(machine: Machine, x: Tensor, dim: int, *, dtype: MaybeDtype = None) -> Tensor:
        if (dtype if dtype is not None else x.dtype) is not _FLOAT32:
            return op(machine.operand(x), dim, dtype=dtype)
        x = machine.floating(x)
        if x.dim() == 0:
            return machine.exact(x.clone())
        key = machine.draws()
        out = prefix_axis(machine.arithmetic.task, array_of(x.detach().contiguous()), dim % x.dim(), key)
        return machine.exact(torch.from_numpy(np.ascontiguousarray(out)))

    return cumsum


register_functional("cumsum", "reduction", _cumsum_rule)
