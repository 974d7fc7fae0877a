"""Gradients that torch writes as several operations and that are one kernel here, as those with an operation of their own are.

That of rsqrt is (-g / 2) * r^3, where r^3 alone leaves fp16's range above r = 40.3. Here it stays in float64, so that the
product is rounded once: autograd casts it to the dtype of the operand. Under "primitive" every step rounds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import TABLE, Entry, enter

_POW = torch.ops.aten.pow.Tensor_Scalar
_power = TABLE[_POW].rule


def pow_of(machine: Machine, x: Tensor, exponent: Any) -> Tensor:
    """x to a power that is a number; unrounded within the gradient of rsqrt."""
    if exponent == 3 and x.dtype is torch.float32 and not machine.arithmetic.primitive:
        node: Any = torch._C._current_autograd_node()
        if node is not None and node.name() == "RsqrtBackward0":
            wide = machine.operand(x).double()
            return wide * wide * wide  # exact for operands of at most 17 bits
    return _power(machine, x, exponent)


enter(Entry(_POW, TABLE[_POW].family, pow_of))
