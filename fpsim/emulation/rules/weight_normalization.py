"""Weight normalization, v * (g / ||v||): float64 inside in a fixed order, one rounding per output; the norms stay wide."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fpsim.backend.numba import sums64
from fpsim.emulation.machine.marks import array_of
from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import itself_in_float64, register, steps

_aten = torch.ops.aten


def _rows(machine: Machine, tensor: Tensor, dim: int) -> np.ndarray:
    """(slices along dim, everything else), in float64."""
    array = array_of(machine.floating(tensor).detach().movedim(dim, 0)).astype(np.float64)
    return np.ascontiguousarray(array.reshape(tensor.shape[dim], -1))


def _back(rows: np.ndarray, like: Tensor, dim: int) -> Tensor:
    moved = like.movedim(dim, 0).shape
    return torch.from_numpy(rows).reshape(moved).movedim(0, dim).contiguous()


@register(_aten._weight_norm_interface.default, family="normalization")
@itself_in_float64(_aten._weight_norm_interface.default)
def weight_norm(machine: Machine, v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    machine.whole()
    rows, lengths = _rows(machine, v, dim), np.empty(v.shape[dim])
    sums64.sum_squares_of_rows(rows, lengths)
    np.sqrt(lengths, out=lengths)
    gain = array_of(machine.floating(g).detach()).astype(np.float64).reshape(-1, 1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        result = _back(rows * (gain / lengths[:, None]), v, dim)
    return machine.finish(result), torch.from_numpy(lengths.astype(np.float32)).reshape(g.shape)


@register(_aten._weight_norm_interface_backward.default, family="normalization")
@itself_in_float64(_aten._weight_norm_interface_backward.default, 1)
def weight_norm_backward(
    machine: Machine, gradient: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Of v: g / n (w - v s / n^2) with w the gradient, n the norm and s = sum w v; of g: s / n."""
    machine.whole()
    rows, above = _rows(machine, v, dim), _rows(machine, gradient, dim)
    sums, lengths = np.empty(v.shape[dim]), array_of(norms.detach()).astype(np.float64).reshape(-1)
    sums64.sum_rows(rows * above, sums)
    gain = array_of(machine.floating(g).detach()).astype(np.float64).reshape(-1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        slope = (sums / lengths / lengths)[:, None]
        of_v = (gain / lengths)[:, None] * (above - rows * slope)
        of_g = sums / lengths
    return machine.finish(_back(of_v, v, dim)), machine.finish(torch.from_numpy(of_g).reshape(g.shape))


def _norm(v: Tensor, dim: int) -> Tensor:
    return v.square().sum([axis for axis in range(v.dim()) if axis != dim], keepdim=True).sqrt()


@steps("_weight_norm_interface")
def weight_norm_steps(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    norms = _norm(v, dim)
    return v * (g / norms), norms


@steps("_weight_norm_interface_backward")
def weight_norm_backward_steps(gradient: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    sums = (gradient * v).sum([axis for axis in range(v.dim()) if axis != dim], keepdim=True)
    of_g = sums / norms
    return (g / norms) * (gradient - v * (of_g / norms)), of_g
