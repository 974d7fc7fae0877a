"""Boxes (x1, y1, x2, y2): suppression of those that overlap a better one, and overlaps of rotated ones."""

from __future__ import annotations

import torch
from torch import Tensor

from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import Rule, register
from fpsim.emulation.rules.elementwise import wide_rule
from fpsim.emulation.rules.torchvision.operators import operators


def suppressed(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """`nms` in steps: the area of each box, of each intersection, its part of the union, compared with the threshold."""
    if boxes.dim() != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1] or boxes.dtype is not scores.dtype:
        return NotImplemented  # the operator has an error of its own
    x1, y1, x2, y2 = boxes.unbind(1)
    areas = (x2 - x1) * (y2 - y1)
    rest, kept = scores.sort(stable=True, descending=True)[1], []
    while len(rest):
        best, rest = rest[0], rest[1:]
        kept.append(best)
        width = _lesser(x2[best], x2[rest]) - _greater(x1[best], x1[rest])
        height = _lesser(y2[best], y2[rest]) - _greater(y1[best], y1[rest])
        common = torch.where(width > 0, width, 0.0) * torch.where(height > 0, height, 0.0)
        rest = rest[~(common / (areas[best] + areas[rest] - common) > threshold)]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.int64)


def _greater(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a < b, b, a)


def _lesser(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b < a, b, a)


for _op in operators("nms"):  # its result is places: in float64 nothing is left to round
    register(_op, family="comparison", steps=suppressed)(wide_rule(_op, scalars=False))

def _rotated(op: torch._ops.OpOverload) -> Rule:
    wide = wide_rule(op)

    def overlaps(machine: Machine, first: Tensor, second: Tensor) -> Tensor:
        """In float64, one rounding; it has no steps."""
        if torch.float32 in (first.dtype, second.dtype):
            machine.whole()
        return wide(machine, first, second)

    return overlaps


for _op in operators("box_iou_rotated"):
    register(_op, family="pooling")(_rotated(_op))
