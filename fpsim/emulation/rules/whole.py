"""Operations that are one kernel: torch's own algorithm in float64, one rounding of each result."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsim.emulation.machine.marks import array_of
from fpsim.emulation.machine.protocol import Axes, Machine, MaybeDtype
from fpsim.emulation.registry import RULES, WHOLE, Entry, Rule, enter, register, register_functional
from fpsim.emulation.rules.elementwise import wide_rule
from fpsim.emulation.rules.exact import exact_rule
from fpsim.emulation.rules.reductions import axes_of, columns_of, shape_of
from fpsim.emulation.schemas import name_of, names

_aten = torch.ops.aten
_FLOAT32, _FLOAT64 = torch.float32, torch.float64


def whole_rule(op: torch._ops.OpOverload) -> Rule:
    """The operation in float64, one rounding of each result; under "primitive" it has steps or is refused."""
    WHOLE.add(name_of(op))
    return wide_rule(op)


LOSSES = names(
    """
    multi_margin_loss multi_margin_loss_backward multilabel_margin_loss_forward multilabel_margin_loss_backward
    """
)

REDUCTIONS = names(
    """
    logcumsumexp segment_reduce _segment_reduce_backward histc histogram index_reduce embedding_renorm
    _histogramdd_bin_edges _histogramdd_from_bin_tensors _histogramdd_from_bin_cts
    """
)

BAGS = "_embedding_bag _embedding_bag_forward_only _embedding_bag_per_sample_weights_backward"

register_functional(LOSSES, "loss", whole_rule)
register_functional(REDUCTIONS, "reduction", whole_rule)
register_functional(BAGS, "reduction", whole_rule)
register_functional("rrelu_with_noise_backward", "formula", whole_rule)


# Products in ascending order


def _product_rule(op: torch._ops.OpOverload) -> Rule | None:
    if op._overloadname not in ("default", "dim_int"):
        return None
    exact = exact_rule(op)

    def product(machine: Machine, x: Tensor, dim: Axes = None, keepdim: bool = False, *, dtype: MaybeDtype = None) -> Tensor:
        if (dtype if dtype is not None else x.dtype) is not _FLOAT32:
            return exact(machine, x, *(() if dim is None else (dim, keepdim)), dtype=dtype)
        machine.whole()
        x = machine.floating(x)
        axes = axes_of(dim, x.dim())
        columns = columns_of(x, axes).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            running = np.multiply.accumulate(columns, axis=0)
        last = running[-1] if len(running) else np.ones(columns.shape[1])
        return machine.finish(torch.from_numpy(np.ascontiguousarray(last)).reshape(shape_of(x, axes, keepdim)))

    return product


def _running_product_rule(op: torch._ops.OpOverload) -> Rule | None:
    if op._overloadname != "default":
        return None
    exact = exact_rule(op)

    def running_product(machine: Machine, x: Tensor, dim: int, *, dtype: MaybeDtype = None) -> Tensor:
        if (dtype if dtype is not None else x.dtype) is not _FLOAT32:
            return exact(machine, x, dim, dtype=dtype)
        machine.whole()
        values = array_of(machine.floating(x).detach().contiguous()).astype(np.float64)
        if x.dim():
            with np.errstate(over="ignore", invalid="ignore"):
                values = np.multiply.accumulate(values, axis=dim)
        return machine.finish(torch.from_numpy(np.ascontiguousarray(values)).reshape(x.shape))

    return running_product


register_functional("prod", "reduction", _product_rule)
register_functional("cumprod", "reduction", _running_product_rule)


def sum_of_numbers(machine: Machine, x: Tensor, dim: Axes = None, keepdim: bool = False, *, dtype: MaybeDtype = None) -> Tensor:
    """A sum in which NaN counts as 0."""
    kept = machine.operand(x)
    if kept.is_floating_point():
        kept = machine.exact(kept.masked_fill(kept.isnan(), 0.0))
    return RULES[_aten.sum.dim_IntList](machine, kept, axes_of(dim, kept.dim()), keepdim, dtype=dtype)


register_functional("nansum", "reduction", lambda op: sum_of_numbers)


# Matrix products in other clothes


def addbmm_(machine: Machine, c: Tensor, a: Tensor, b: Tensor, **factors: Any) -> Tensor:
    """Alone of its kind it broadcasts what it writes to, which gets the result's shape."""
    addend = machine.exact(machine.operand(c).clone())  # what NumPy has seen cannot grow
    result = RULES[_aten.addbmm.default](machine, addend, a, b, **factors)
    if c.shape != result.shape:
        c.resize_(result.shape)
    return machine.write(c, result)


enter(Entry(_aten.addbmm_.default, "matmul", addbmm_))


# With a part that stays wide, or that is drawn


def _ctc_rule(op: torch._ops.OpOverload) -> Rule:
    def ctc_loss(machine: Machine, log_probs: Tensor, targets: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        if log_probs.dtype is not _FLOAT32:
            return op(log_probs, targets, *rest)
        machine.whole()
        losses, log_alpha = op(machine.operand(log_probs).double(), targets, *rest)
        return machine.finish(losses), log_alpha.float()  # wide: the backward pass reads it as it is

    return ctc_loss


def _ctc_gradient_rule(op: torch._ops.OpOverload) -> Rule:
    def ctc_gradient(
        machine: Machine, gradient: Tensor, log_probs: Tensor, targets: Tensor, ins: Any, outs: Any, losses: Tensor,
        alpha: Tensor, *rest: Any,
    ) -> Tensor:  # fmt: skip
        if log_probs.dtype is not _FLOAT32:
            return op(gradient, log_probs, targets, ins, outs, losses, alpha, *rest)
        machine.whole()
        gradient, log_probs, losses = (machine.operand(item).double() for item in (gradient, log_probs, losses))
        return machine.finish(op(gradient, log_probs, targets, ins, outs, losses, alpha.double(), *rest))

    return ctc_gradient


register_functional("_ctc_loss", "loss", _ctc_rule)
register_functional("_ctc_loss_backward", "loss", _ctc_gradient_rule)


@register(_aten.rrelu_with_noise.default, family="random")
def rrelu_with_noise(
    machine: Machine, x: Tensor, noise: Tensor, lower: float = 0.125, upper: float = 1 / 3, training: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """The drawn slopes are rounded first."""
    x = machine.operand(x)
    if x.dtype is not _FLOAT32:
        return _aten.rrelu_with_noise.default(x, noise, lower, upper, training, generator)
    if not training:
        return RULES[_aten.leaky_relu.default](machine, x, (float(lower) + float(upper)) / 2)
    drawn = torch.empty_like(x).uniform_(float(lower), float(upper), generator=generator)
    slopes = machine.finish(torch.where(x <= 0, drawn, torch.ones_like(x)))
    machine.write(noise, slopes)
    return RULES[_aten.mul.Tensor](machine, x, slopes)


@register(_aten.rrelu_with_noise_.default, family="random")
def rrelu_with_noise_(machine: Machine, x: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
    return machine.write(x, rrelu_with_noise(machine, x, *rest, **kwargs))


def nextafter(machine: Machine, x: Tensor, y: Tensor) -> Tensor:
    """The format's next value."""
    from fpsim.arrays.encoding import next_down, next_up

    x, y = machine.operands((x, y))
    if torch.promote_types(x.dtype, y.dtype) is not _FLOAT32:
        return _aten.nextafter.default(x, y)
    x, y = machine.floating(x), machine.floating(y)
    x, y = torch.broadcast_tensors(x, y)
    values = x.detach().contiguous().numpy()
    up, down = (torch.from_numpy(np.asarray(step(values, machine.arithmetic.fmt), np.float32)) for step in (next_up, next_down))
    moved = torch.where(y > x, up, torch.where(y < x, down, y))
    return machine.exact(torch.where(x.isnan(), x, moved))


register_functional("nextafter", "exact", lambda op: nextafter)


@register(_aten._efficientzerotensor.default, family="constant")
def zeros_without_memory(machine: Machine, size: list[int], *, dtype: MaybeDtype = None, **kwargs: Any) -> Tensor:
    return machine.exact(torch.zeros(size, dtype=dtype))


@register(_aten._new_zeros_with_same_feature_meta.default, family="constant")
def zeros_of_a_tangent(machine: Machine, x: Tensor, other: Tensor, *, self_num_batch_dims: int = 0) -> Tensor:
    """Where the tangent of a tensor of other strides goes."""
    op = _aten._new_zeros_with_same_feature_meta.default
    return machine.exact(op(x, other, self_num_batch_dims=self_num_batch_dims))
