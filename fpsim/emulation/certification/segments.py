"""Slopes between two points that are both known, the emulated and the exact one: numbers, where a box has ranges.

With d = x^ - x and the logarithmic mean L(a, b) = (a - b) / (log a - log b):

    g elementwise    (g(x^) - g(x)) / d
    softmax          p^_i - p_i = L(p^_i, p_i) (d_i - sum_j w_j d_j),  w_j = L(exp x^_j, exp x_j) / L(sum exp x^, sum exp x)
    normalization    y^ - y = s' (d - mean d) - k c' mean(c' d): s' and c' half way between the inverse deviations and the
                     centered rows of both, k = 2 s^2 s^^2 / (s + s^)

All three are identities. What is left of a range is what the exact point's own radius r and float64's rounding leave.
"""

from __future__ import annotations

import copy

import torch

from fpsim.emulation.certification.rows import Rows
from fpsim.emulation.certification.slopes import EPSILON, Operand, Slope, upwards
from fpsim.emulation.certification.table import DOUBLE, TABLE, Call

_NEAR = 0.05  # relative uncertainties up to which squares are left to a factor


def is_segment(operand: Operand) -> bool:
    """Whether the emulated point is known, and the exact one but for its radius."""
    return operand.spread is None and operand.value is not operand.reference


def _radius(operand: Operand) -> torch.Tensor:
    return torch.zeros_like(operand.reference) if operand.radius is None else operand.radius


def quotients(call: Call, least: torch.Tensor, most: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The range [least, most] of an elementwise function's slopes, narrowed to its difference quotient where that is better.

    The quotient is a mean of slopes between both points; moving x by r moves it by at most r (most - least) / (|d| - r).
    """
    operand = call.operands[0]
    change, radius = operand.difference(), _radius(operand)
    distance = change.abs() * (1 - 4 * EPSILON) - radius
    results = [call.run([point]) for point in (operand.value, operand.reference)]
    raised = results[0] - results[1]
    quotient = raised / change
    once = copy.copy(call)
    once.result = torch.maximum(results[0].abs(), results[1].abs())
    error = TABLE[call.step.op].cost(once, DOUBLE)
    lost = 8 * EPSILON * raised.abs() + (0.0 if error is None else 4 * error) + radius * (most - least)
    slack = upwards(lost / distance + 8 * EPSILON * quotient.abs())
    better = (distance > 0) & (change.abs() <= 1) & torch.isfinite(quotient) & torch.isfinite(slack)
    return (
        torch.where(better, torch.maximum(least, quotient - slack), least),
        torch.where(better, torch.minimum(most, quotient + slack), most),
    )


def softmax_between(operand: Operand, dim: int) -> Slope | None:
    """The slope of softmax; None where the points are too far apart or too uncertain for the formula."""
    change, value, reference = operand.difference(), operand.value, operand.reference
    shift = torch.maximum(value, reference).amax(dim, keepdim=True)
    width = (shift - torch.minimum(value, reference).masked_fill(reference == -torch.inf, torch.inf).amin(dim, keepdim=True))
    unsure = _radius(operand).amax(dim, keepdim=True)
    share = 3 * unsure + EPSILON * (16 * width.clamp(min=0) + 8 * value.shape[dim] + 128)
    if not bool(torch.isfinite(change).all() & (share < _NEAR).all() & (change.abs() < 8).all()):
        return None
    powers = [torch.exp(point - shift) for point in (value, reference)]
    sums = [part.sum(dim, keepdim=True) for part in powers]
    total = torch.log(sums[0] / sums[1])
    weights = powers[1] * _growth(change) / (sums[1] * _growth(total))
    mean = powers[1] / sums[1] * _growth(change - total)

    def center(t: torch.Tensor) -> torch.Tensor:
        return mean * (t - (weights * t).sum(dim, keepdim=True))

    def both(t: torch.Tensor) -> torch.Tensor:
        return mean * (t + (weights * t).sum(dim, keepdim=True))

    return Slope(center, lambda t: (1 + 3 * share) * both(t), lambda t: 3 * share * both(t), value.shape[dim] + 8)


def _growth(d: torch.Tensor) -> torch.Tensor:
    """(exp(d) - 1) / d, whose series ends below 2^-60 where it is used."""
    small = d.abs() < 2.0**-13
    return torch.where(small, 1 + d / 2 * (1 + d / 3 * (1 + d / 4)), torch.expm1(d) / torch.where(small, 1.0, d))


def normal_between(emulated: Rows, exact: Rows, scale: torch.Tensor) -> Slope | None:
    """The slope of rows that are normalized; None where the exact ones are too uncertain."""
    s = (emulated.inverse + exact.inverse) / 2
    ds = (emulated.inverse_radius + exact.inverse_radius) / 2 + 4 * EPSILON * s
    share = emulated.inverse_radius / emulated.inverse + exact.inverse_radius / exact.inverse + 16 * EPSILON
    if not bool((share < _NEAR).all()):
        return None
    c = (emulated.centered + exact.centered) / 2
    dc = (emulated.shift + exact.shift) / 2 + 4 * EPSILON * c.abs()
    k = (emulated.inverse * exact.inverse) ** 2 / s
    dk, size_c, weight = 3 * share * k, c.abs() + dc, scale.abs()

    def mean(t: torch.Tensor) -> torch.Tensor:
        return t.mean(-1, keepdim=True)

    def center(t: torch.Tensor) -> torch.Tensor:
        u = t.reshape(exact.shape)
        return (scale * (s * (u - mean(u)) - k * c * mean(c * u))).reshape(t.shape)

    def size(t: torch.Tensor) -> torch.Tensor:
        u = t.reshape(exact.shape)
        return (weight * ((s + ds) * (u + mean(u)) + (k + dk) * size_c * mean(size_c * u))).reshape(t.shape)

    def radius(t: torch.Tensor) -> torch.Tensor:
        u = t.reshape(exact.shape)
        turned = dc * mean(size_c * u) + c.abs() * mean(dc * u)
        whole = ds * (u + mean(u)) + dk * size_c * mean(size_c * u) + k * turned
        return (weight * whole).reshape(t.shape)

    return Slope(center, size, radius, 2 * exact.count)
