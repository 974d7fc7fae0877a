"""softmax, log_softmax and losses: float64 inside in a fixed order, one rounding of each output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsim.backend import threads
from fpsim.backend.numba import softmax as kernels
from fpsim.backend.numba.sums64 import sum_rows
from fpsim.emulation.machine.finishing import by_rows
from fpsim.emulation.machine.marks import array_of
from fpsim.emulation.machine.portable import in_float64
from fpsim.emulation.machine.protocol import Machine, MaybeDtype, MaybeTensor
from fpsim.emulation.promotion import PROMOTING, promoting
from fpsim.emulation.registry import Rule, itself_in_float64, register, register_functional

_aten = torch.ops.aten
_NONE, _MEAN, _SUM = range(3)
_COST = 16  # of an exponential and its share of a sum, in multiply-adds


def _along(machine: Machine, kernel: Callable[..., None], dim: int, kind: int, *tensors: Tensor) -> Tensor:
    """`kernel(*rows, kind, out)` on the tensors' lines along an axis; rounded as it goes where they lie in memory."""
    shape = tensors[0].shape or torch.Size([1])
    last = dim % len(shape) == len(shape) - 1
    moved = [item.detach() if last else item.detach().movedim(dim, -1) for item in tensors]
    size = max(1, shape[dim])
    lines = [array_of(item.contiguous()).reshape(-1, size) for item in moved]

    def run(rows: slice, out: np.ndarray) -> None:
        kernel(*(item[rows] for item in lines), kind, out)

    if last:
        return machine.compute(by_rows(run, size), tensors[0].shape, size, _COST)
    values = np.empty(lines[0].shape)
    threads.run(lambda i, j: run(slice(i, j), values[i:j]), threads.parts(len(values), _COST * values.size))
    return machine.finish(torch.from_numpy(values.reshape(moved[0].shape)).movedim(-1, dim).contiguous())


def _softmax_rule(kind: int) -> Rule:
    def softmax(machine: Machine, x: Tensor, dim: int, half_to_float: bool) -> Tensor:
        if not x.is_floating_point():
            raise NotImplementedError(machine.message(f"of {x.dtype}, which torch refuses too: give dtype="))
        machine.whole()
        return _along(machine, kernels.softmax, dim, kind, machine.operand(x))

    return softmax


def _softmax_gradient_rule(kind: int) -> Rule:
    def softmax_gradient(machine: Machine, gradient: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
        machine.whole()
        return _along(
            machine, kernels.softmax_gradient, dim, kind, machine.operand(gradient), machine.operand(output)
        )

    return softmax_gradient


for _name, _kind in (("_softmax", kernels.SOFTMAX), ("_log_softmax", kernels.LOGARITHM)):
    _op = getattr(_aten, _name).default
    register(_op, family="softmax")(itself_in_float64(_op)(_softmax_rule(_kind)))
    _op = getattr(_aten, f"{_name}_backward_data").default
    register(_op, family="softmax")(itself_in_float64(_op, 1)(_softmax_gradient_rule(_kind)))


@register(_aten._safe_softmax.default, family="softmax")
def safe_softmax(machine: Machine, x: Tensor, dim: int, dtype: MaybeDtype = None) -> Tensor:
    """softmax, but a row of -inf gives zeros: what attention does with rows that are masked out."""
    if x.dtype is torch.float64 or (dtype is not None and dtype is not torch.float32):
        return _aten._safe_softmax.default(machine.operand(x), dim, dtype)
    machine.whole()
    return _along(machine, kernels.softmax, dim, kernels.SAFE, machine.floating(x))


def _total(values: Tensor) -> float:
    """The sum of float64 values in row-major order, as `sums64.total` has it."""
    out = np.empty(1)
    sum_rows(array_of(values.detach().contiguous()).reshape(1, -1), out)
    return float(out[0])


# Negative log likelihood


def _class_weights(
    machine: Machine, weight: MaybeTensor, target: Tensor, classes: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """(weight of each target in float64, 0 where ignored; targets with ignored ones replaced by 0)."""
    if target.dtype not in (torch.int64, torch.uint8):
        raise RuntimeError(f"expected target dtype to be Long or Byte, but got {target.dtype}")
    kept = target != ignore_index
    safe = torch.where(kept, target, torch.zeros_like(target)).long()
    if bool(((safe < 0) | (safe >= classes)).any()):
        raise IndexError("Target is out of bounds.")
    if weight is None:
        return kept.double(), safe
    weights = machine.operand(weight).double()
    return torch.where(kept, weights[safe], torch.zeros((), dtype=torch.float64)), safe


def _nll(
    machine: Machine, x: Tensor, target: Tensor, weight: MaybeTensor, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    machine.whole()
    x = machine.operand(x)
    axis = 0 if x.dim() == 1 else 1
    weights, safe = _class_weights(machine, weight, target, x.shape[axis], ignore_index)
    picked = x.gather(axis, safe.unsqueeze(axis)).squeeze(axis).double()
    losses = torch.where(target == ignore_index, torch.zeros_like(picked), -weights * picked)
    total_weight = _total(weights)
    wide = torch.tensor(total_weight if reduction != _NONE else 0.0, dtype=torch.float32)
    if reduction == _NONE:
        return machine.finish(losses), wide
    total = _total(losses)
    if reduction == _MEAN:
        total = float(np.float64(total) / np.float64(total_weight)) if total_weight else float("nan")
    return machine.finish(torch.tensor(total, dtype=torch.float64)), wide


def _nll_gradient(
    machine: Machine, gradient: Tensor, x: Tensor, target: Tensor, weight: MaybeTensor, reduction: int, ignore_index: int,
    total_weight: Tensor,
) -> Tensor:  # fmt: skip
    machine.whole()
    axis = 0 if x.dim() == 1 else 1
    weights, safe = _class_weights(machine, weight, target, x.shape[axis], ignore_index)
    gradient = machine.operand(gradient).double()
    values = -weights * gradient
    if reduction == _MEAN:
        values = values / total_weight.double()  # wide: read as the forward pass left it
    values = torch.where(target == ignore_index, torch.zeros_like(values), values)
    out = torch.zeros(x.shape, dtype=torch.float64).scatter_(axis, safe.unsqueeze(axis), values.unsqueeze(axis))
    return machine.finish(out)


for _suffix in ("", "2d"):
    _op = getattr(_aten, f"nll_loss{_suffix}_forward").default
    register(_op, family="loss")(itself_in_float64(_op)(_nll))
    _op = getattr(_aten, f"nll_loss{_suffix}_backward").default
    register(_op, family="loss")(itself_in_float64(_op, 1)(_nll_gradient))


# Losses that are elementwise up to a sum


def _loss_rule(op: torch._ops.OpOverload) -> Rule:
    """The elementwise part in float64, the sum in a fixed order, the division by n, one rounding."""
    on_wide = in_float64(op)
    names = [argument.name for argument in op._schema.arguments]
    defaults = [argument.default_value for argument in op._schema.arguments]
    where = names.index("reduction")

    def loss(machine: Machine, *args: Any, **kwargs: Any) -> Tensor:
        machine.whole()
        values = [*args, *(kwargs.get(name, value) for name, value in list(zip(names, defaults, strict=True))[len(args) :])]
        reduction, values[where] = values[where], _NONE
        losses = on_wide(*(machine.floating(item).double() if isinstance(item, Tensor) else item for item in values))
        if reduction == _NONE:
            return machine.finish(losses)
        total = _total(losses)
        if reduction == _MEAN:
            total = float(np.float64(total) / losses.numel()) if losses.numel() else float("nan")
        return machine.finish(torch.tensor(total, dtype=torch.float64))

    PROMOTING.add(op)
    return promoting(op, loss)


def _loss_gradient_rule(op: torch._ops.OpOverload) -> Rule:
    """torch's formula in float64: it is elementwise, the division by n included; one rounding."""
    on_wide = in_float64(op)

    def loss_gradient(machine: Machine, *args: Any, **kwargs: Any) -> Tensor:
        machine.whole()

        def wide(value: Any) -> Any:
            return machine.floating(value).double() if isinstance(value, Tensor) else value

        return machine.finish(on_wide(*map(wide, args), **{key: wide(value) for key, value in kwargs.items()}))

    PROMOTING.add(op)
    return promoting(op, loss_gradient)


LOSSES = "mse_loss smooth_l1_loss huber_loss binary_cross_entropy soft_margin_loss binary_cross_entropy_with_logits"
register_functional(LOSSES, "loss", _loss_rule)
register_functional([f"{name}_backward" for name in LOSSES.split()[:-1]], "loss", _loss_gradient_rule)
