"""Rows of softmax and of batch, layer and group normalization: float64 inside in the emulation, one rounding."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fpsim.emulation.certification.rows import Rows
from fpsim.emulation.certification.segments import is_segment, normal_between, softmax_between
from fpsim.emulation.certification.slopes import EPSILON, Operand, Slope, linear, scaled, upwards
from fpsim.emulation.certification.table import Call, LibraryArithmetic, register

_aten = torch.ops.aten


# Softmax


def _probabilities(low: torch.Tensor, high: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The range of softmax over the box: every other logit at its other end.

    p_i = 1 / (1 + sum of exp(z_j - z_i)); lows and highs have shifts of their own, for they may be far from each other.
    """
    bottom, top = (end.amax(dim, keepdim=True) for end in (low, high))
    bottom, top = (torch.where(shift == -torch.inf, 0.0, shift) for shift in (bottom, top))
    small, large = torch.exp(low - bottom), torch.exp(high - top)
    fewer, more = small.sum(dim, keepdim=True), large.sum(dim, keepdim=True)
    least = 1 / (1 + torch.exp(top - low) * ((more - large).clamp(min=0) + 2.0**-40 * more))
    most = 1 / (1 + torch.exp(bottom - high) * (fewer - small - 2.0**-40 * fewer).clamp(min=0))
    most = torch.where(high == -torch.inf, 0.0, most)
    slack = (low.shape[dim] + 4) * 2.0**-42  # exp of up to 745 in magnitude errs by 2^-43
    return (least * (1 - slack)).nan_to_num(0.0), (most * (1 + slack) + 2.0**-1000).clamp(max=1.0).nan_to_num(1.0)


def _softmax_slopes(call: Call) -> Sequence[Slope]:
    """dp_i = p_i (dz_i - sum_j p_j dz_j), with p anywhere in its range."""
    operand, dim = call.operands[0], call.args[1]
    between = softmax_between(operand, dim) if is_segment(operand) else None
    if between is not None:
        return [between]
    count = operand.value.shape[dim]

    @functools.cache
    def parts() -> tuple[torch.Tensor, ...]:
        low, high = _probabilities(operand.low, operand.high, dim)
        return low, high, (low + high) / 2, upwards((high - low) / 2)

    def center(t: torch.Tensor) -> torch.Tensor:
        p = parts()[2]
        return p * (t - (p * t).sum(dim, keepdim=True))

    def size(t: torch.Tensor) -> torch.Tensor:
        low, high, _, _ = parts()
        # |p_i (1 - p_i)| on the diagonal, p_i p_j off it; the factor covers what the subtraction may lose
        others = (high * t).sum(dim, keepdim=True) * (1 + count * 2.0**-50) - high * t
        return high * ((1 - low).clamp(min=0) * t + others)

    def radius(t: torch.Tensor) -> torch.Tensor:
        _, _, p, r = parts()
        rest = (p * t).sum(dim, keepdim=True)
        moved = (r * t).sum(dim, keepdim=True)
        return r * t + p * moved + r * rest + r * moved

    def forward(t: torch.Tensor) -> torch.Tensor:
        """The range of p bounds the change too, and so does half the largest change (in the max norm)."""
        if operand.surrounded_by(t):
            return _softmax_moved(operand.value, t, dim)
        low, high, _, _ = parts()
        bound = torch.minimum(torch.minimum(size(t), high - low), 0.5 * t.amax(dim, keepdim=True)) + 0 * t
        return upwards(bound, count + 4)

    return [Slope(center, size, radius, count + 4, forward)]


def _softmax_moved(value: torch.Tensor, t: torch.Tensor, dim: int) -> torch.Tensor:
    """A bound on how far softmax moves within t of the value, which float32 holds.

    Where no logit moves by more than m, p_i lies between exp(-2 m) and exp(2 m) times what it was; from m = 300 on that says
    nothing. float32's own p errs by a share that grows with the logits' distance, to 104, beyond which it is 0, and with
    their number.
    """
    count, most = value.shape[dim], t.amax(dim, keepdim=True)
    share, growth = (count + 128) * 2.0**-22, torch.exp(2 * most.clamp(max=300.0)) * (1 + 2.0**-40)
    p = torch.softmax(value.float(), dim).nan_to_num_(0.0).double()
    low = p * ((1 - share) / growth)
    high = p.mul_((1 + share) * growth).add_(growth * 2.0**-120).clamp_(max=1.0)
    moved = high * t
    others = moved.sum(dim, keepdim=True) * (1 + count * 2.0**-50) - moved
    bound = low.neg().add_(1.0).clamp_(min=0.0).mul_(t).add_(others).mul_(high)  # |p_i (1 - p_i)|, and p_i p_j
    return upwards(torch.minimum(torch.minimum(bound, high.sub_(low)), 0.5 * most), count + 8)


def _softmax_cost(call: Call, unit: LibraryArithmetic) -> torch.Tensor:
    """exp of a rounded difference, a sum in any order, a quotient: relative to each probability."""
    operand, dim = call.operands[0], call.args[1]
    top, bottom = operand.value.amax(dim, keepdim=True), operand.value.masked_fill(operand.value == -torch.inf, torch.inf)
    width = (top - bottom.amin(dim, keepdim=True)).nan_to_num(0.0, 0.0, 0.0)
    if operand.spread is not None:
        width = width + 2 * operand.spread.amax(dim, keepdim=True)
    assert call.result is not None
    relative = (2 * width + 4 * unit.ulps + operand.value.shape[dim] + 8) * unit.roundoff
    relative = torch.where(relative < 0.25, relative * 1.5, torch.inf)  # first order, and what is left
    size = call.result.abs() if operand.spread is None else torch.ones(())
    return upwards(size * relative + unit.underflow * 4)


for _op in (_aten._softmax.default, _aten._safe_softmax.default):
    register(_op, "softmax", _softmax_slopes, cost=_softmax_cost)


# Layer and group normalization


def _require_known(call: Call, operands: Sequence[Operand]) -> None:
    if not all(operand.known for operand in operands):
        raise call.refuse("weights or statistics that depend on the input; certification takes them as constants")


def _normal_cost(
    rows: Rows, operand: Operand, scale: torch.Tensor, shift: torch.Tensor, unit: LibraryArithmetic
) -> torch.Tensor:
    """A mean and a variance in any order of summation, E[x^2] - E[x]^2 included, then three rounded steps."""
    n, u = rows.count, unit.roundoff
    size = operand.magnitude.reshape(rows.shape)
    mean_error = (n + 3) * u * size.mean(-1, keepdim=True)
    square = size.square().mean(-1, keepdim=True)
    variance_error = 4 * (n + 8) * u * square
    relative = variance_error * rows.high**2  # of variance + eps; the inverse root moves by less than this where it is small
    relative = torch.where(relative < 0.5, relative, torch.inf)
    normal = rows.normal.abs() + rows.normal_radius
    error = normal * (relative + 12 * u) + rows.high * (mean_error + 2 * u * size)
    return upwards(scale.abs() * error * 1.01 + 4 * u * (scale.abs() * normal + shift.abs()) + 4 * unit.underflow, n)


def _layer(call: Call) -> tuple[Rows, torch.Tensor, torch.Tensor]:
    x = call.operands[0]
    _require_known(call, call.operands[1:])
    size = 1
    for length in call.args[1]:
        size *= length
    shape = (x.value.numel() // size, size)
    weight, bias = call.args[2], call.args[3]
    one = torch.ones((), dtype=torch.float64)
    scale = one if weight is None else weight.reference.reshape(-1)
    shift = 0 * one if bias is None else bias.reference.reshape(-1)
    return Rows(x, shape, call.args[4]), scale, shift


def _group(call: Call) -> tuple[Rows, torch.Tensor, torch.Tensor]:
    x = call.operands[0]
    _require_known(call, call.operands[1:])
    _, weight, bias, images, channels, size, groups, eps = call.args
    shape = (images * groups, channels // groups * size)

    def rows(operand: Operand | None, default: float) -> torch.Tensor:
        values = torch.full((channels,), default, dtype=torch.float64) if operand is None else operand.reference
        return values[None, :, None].expand(images, channels, size).reshape(shape)

    return Rows(x, shape, eps), rows(weight, 1.0), rows(bias, 0.0)


def _row_slopes(read: Callable[[Call], Any], parameter: Callable[..., Any]) -> Callable[[Call], Sequence[Slope]]:
    def slopes(call: Call) -> Sequence[Slope]:
        rows, scale, _ = call.once(read)
        x = call.operands[0]
        between = None
        if is_segment(x):
            emulated, exact = Operand(x.value, x.value), Operand(x.reference, x.reference, x.radius)
            between = normal_between(Rows(emulated, rows.shape, rows.eps), Rows(exact, rows.shape, rows.eps), scale)
        of_operands = [rows.slope(scale) if between is None else between]
        spread, weights = parameter(call)

        @functools.cache
        def normal() -> Slope:
            """y^ w^ - y w = (y^ - y) w + y^ (w^ - w): the weight's slope is the normalized row itself."""
            emulated = Operand(x.value, x.value, None, x.spread)
            rows_range = Rows(emulated, rows.shape, rows.eps)
            low = (rows_range.normal - rows_range.normal_radius).reshape(x.value.shape)
            high = (rows_range.normal + rows_range.normal_radius).reshape(x.value.shape)
            return scaled(low, high, lambda t, w: w * spread(t), 1)

        if weights[0] is not None:
            of_operands.append(
                Slope(lambda t: normal().center(t), lambda t: normal().size(t), lambda t: _radius(normal(), t), 1)
            )
        if weights[1] is not None:
            of_operands.append(linear(lambda t: spread(t).expand(x.value.shape)))
        return of_operands

    return slopes


def _radius(slope: Slope, t: torch.Tensor) -> torch.Tensor:
    assert slope.radius is not None
    return slope.radius(t)


def _row_cost(read: Callable[[Call], Any]) -> Callable[[Call, LibraryArithmetic], torch.Tensor]:
    def cost(call: Call, unit: LibraryArithmetic) -> torch.Tensor:
        rows, scale, shift = call.once(read)
        return _normal_cost(rows, call.operands[0], scale, shift, unit).reshape(call.operands[0].value.shape)

    return cost


def _layer_parameters(call: Call) -> Any:
    return (lambda t: t), (call.args[2], call.args[3])


def _group_parameters(call: Call) -> Any:
    dims = call.operands[0].value.dim() - 2
    return (lambda t: t.reshape(-1, *(1 for _ in range(dims)))), (call.args[1], call.args[2])


register(_aten.native_layer_norm.default, "normalization", _row_slopes(_layer, _layer_parameters), cost=_row_cost(_layer))
register(_aten.native_group_norm.default, "normalization", _row_slopes(_group, _group_parameters), cost=_row_cost(_group))


# Batch normalization with fixed statistics: x -> a x + c for each channel


def _affine(call: Call, which: str) -> tuple[torch.Tensor, torch.Tensor]:
    """a and c of one side ("value" or "reference"), shaped to broadcast."""
    return call.once(_both_affine)[which]


def _both_affine(call: Call) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {which: _one_affine(call, which) for which in ("value", "reference")}


def _one_affine(call: Call, which: str) -> tuple[torch.Tensor, torch.Tensor]:
    x, weight, bias, mean, variance = call.args[:5]
    eps = call.args[-1]
    if mean is None or variance is None or call.args[5] is True:
        raise call.refuse("batch statistics (training); certify a model in eval mode")
    a = 1 / torch.sqrt(getattr(variance, which) + eps)
    if weight is not None:
        a = a * getattr(weight, which)
    c = -getattr(mean, which) * a
    if bias is not None:
        c = c + getattr(bias, which)
    shape = (-1, *(1 for _ in x.value.shape[2:]))
    return a.reshape(shape), c.reshape(shape)


def _batch_slopes(call: Call) -> Sequence[Slope | None]:
    _require_known(call, call.operands[1:])
    a, _ = _affine(call, "reference")
    low, high = a - 16 * EPSILON * a.abs(), a + 16 * EPSILON * a.abs()
    return [scaled(low, high, torch.mul, 1), *(None for _ in call.operands[1:])]


def _batch_known(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """(a^ - a) x^ + (c^ - c): what rounded weights and statistics change."""
    x = call.operands[0]
    a_emulated, c_emulated = _affine(call, "value")
    a, c = _affine(call, "reference")
    signed_part = (a_emulated - a) * x.value + (c_emulated - c)
    scale = (a_emulated.abs() + a.abs()) * x.magnitude + _sizes(call, "value") + _sizes(call, "reference")
    rest = 32 * EPSILON * scale
    if x.spread is not None:
        rest = rest + (a_emulated - a).abs() * x.spread
    return signed_part, upwards(rest)


def _sizes(call: Call, which: str) -> torch.Tensor:
    """|mean a| + |bias|, to which the rounding of c is relative."""
    a, c = _affine(call, which)
    mean = getattr(call.args[3], which).reshape(a.shape)
    return c.abs() + 2 * (mean * a).abs()


def _batch_cost(call: Call, unit: LibraryArithmetic) -> torch.Tensor:
    """((x - mean) * inverse) * weight + bias, or a x + c with c = bias - mean a."""
    a, _ = _affine(call, "reference")
    size = a.abs() * call.operands[0].magnitude + _sizes(call, "reference")
    return upwards(size * 12 * unit.roundoff + 4 * unit.underflow)


for _name in ("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "_batch_norm_no_update"):
    register(getattr(_aten, _name).default, "normalization", _batch_slopes, cost=_batch_cost, known=_batch_known)
register(
    _aten._native_batch_norm_legit_no_training.default, "normalization", _batch_slopes, cost=_batch_cost, known=_batch_known
)
