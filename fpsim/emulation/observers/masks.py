"""Infinities that a mask asks for: of a number beyond the range that stands for one."""

from __future__ import annotations

import torch

from fpsim.emulation.observers.call import Call
from fpsim.emulation.observers.tensors import is_finite
from fpsim.emulation.schemas import name_of


def reads_mask(call: Call) -> bool:
    """Whether all that is not finite, of what it read from outside and of its results, is -infinity: as of a mask's -1e9."""
    read = [value for _, _, value in call.outside if not is_finite(value)]
    results = [result for result in call.emulated if not is_finite(result)]
    return bool(read and results) and not any(bool((item.isnan() | (item == torch.inf)).any()) for item in (*read, *results))


def makes_mask(call: Call, result: torch.Tensor) -> bool:
    """Whether a tensor of zeros and ones was multiplied by a number beyond the range: as in `(1 - mask) * -1e9`."""
    if name_of(call.operation) != "mul" or bool((result.isnan() | (result == torch.inf)).any()):
        return False
    tensors = [item for item in call.operands if item.dim()]
    return len(tensors) == 1 and bool(((tensors[0] == 0) | (tensors[0].abs() == 1)).all())
