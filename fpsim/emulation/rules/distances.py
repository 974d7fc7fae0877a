"""Distances between points, each one kernel: float64 inside, one rounding of each result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import Rule, register_functional
from fpsim.emulation.rules.whole import whole_rule

_aten = torch.ops.aten


def _gradient_rule(op: torch._ops.OpOverload) -> Rule:
    whole = whole_rule(op)
    forward = _aten._pdist_forward.default if "pdist" in op._schema.name else _aten._cdist_forward.default

    def distance_gradient(machine: Machine, gradient: Tensor, *args: Any) -> Tensor:
        *points, p, distance = args
        if p != float("inf") or distance.dtype is not torch.float32:
            return whole(machine, gradient, *args)
        # The gradient of the largest difference goes where it is, and no difference equals its rounded value.
        machine.whole()
        gradient, *points = (machine.operand(item).double() for item in (gradient, *points))
        distance = forward(*points, p) if len(points) == 1 else forward(*points, p, None)
        return machine.finish(op(gradient, *points, p, distance))

    return distance_gradient


register_functional("_cdist_forward _pdist_forward dist renorm", "reduction", whole_rule)
register_functional("_cdist_backward _pdist_backward", "reduction", _gradient_rule)
