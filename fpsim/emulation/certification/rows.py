"""Rows that are normalized each by its own mean and variance."""

from __future__ import annotations

import torch

from fpsim.emulation.certification.slopes import EPSILON, Operand, Slope, upwards


class Rows:
    """x as rows that are normalized each by its own mean and variance: the ranges of what the slopes are made of."""

    def __init__(self, operand: Operand, shape: tuple[int, ...], eps: float):
        self.shape, self.count, self.eps = shape, shape[-1], eps
        self.middle = operand.reference.reshape(shape)
        if operand.radius is not None and operand.surrounded_by(operand.radius):
            self.reach = operand.radius.reshape(shape)
        else:
            reach = torch.maximum(operand.high - operand.reference, operand.reference - operand.low).reshape(shape)
            self.reach = upwards(reach + 4 * EPSILON * self.middle.abs())
        self.centered = centered = self.middle - self.middle.mean(-1, keepdim=True)
        slack = (self.count + 16) * EPSILON * self.middle.abs().amax(-1, keepdim=True)
        deviation = centered.square().mean(-1, keepdim=True).sqrt()
        # The standard deviation is a norm of the centered row: it moves by at most the norm of the change.
        moved = upwards(self.reach.square().mean(-1, keepdim=True).sqrt() + slack, self.count)
        least, most = (deviation - moved).clamp(min=0), deviation + moved
        self.low, self.high = 1 / torch.sqrt(most**2 + eps), 1 / torch.sqrt(least**2 + eps)  # of the inverse deviation
        self.low, self.high = self.low * (1 - 16 * EPSILON), self.high * (1 + 16 * EPSILON)
        self.inverse = (self.low + self.high) / 2
        self.inverse_radius = upwards((self.high - self.low) / 2)
        # The normalized row, and how far it may be from its middle.
        self.normal = centered * self.inverse
        self.shift = shift = self.reach + upwards(self.reach.mean(-1, keepdim=True), self.count) + slack
        size = centered.abs() + shift
        self.normal_radius = upwards(size * self.inverse_radius + self.inverse * shift + 16 * EPSILON * size * self.inverse)

    def slope(self, scale: torch.Tensor) -> Slope:
        """dy = scale s (dx - mean(dx) - y mean(y dx)), with s and y anywhere in their ranges; scale broadcasts to the rows."""
        s, ds, y, dy = self.inverse, self.inverse_radius, self.normal, self.normal_radius
        size_s, size_y, weight = self.high, upwards(y.abs() + dy), scale.abs()
        flat = self.shape

        def mean(t: torch.Tensor) -> torch.Tensor:
            return t.mean(-1, keepdim=True)

        def center(t: torch.Tensor) -> torch.Tensor:
            u = t.reshape(flat)
            return (scale * s * (u - mean(u) - y * mean(y * u))).reshape(t.shape)

        def size(t: torch.Tensor) -> torch.Tensor:
            u = t.reshape(flat)
            return (weight * size_s * (u + mean(u) + size_y * mean(size_y * u))).reshape(t.shape)

        def radius(t: torch.Tensor) -> torch.Tensor:
            u = t.reshape(flat)
            inner = y.abs() * mean(dy * u) + dy * mean(size_y * u)
            whole = u + mean(u) + size_y * mean(size_y * u)
            return (weight * (ds * whole + s * inner)).reshape(t.shape)

        return Slope(center, size, radius, 2 * self.count)
