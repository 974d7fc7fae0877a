"""Windows of signal processing: their formulas in float64 by fpsim's own functions, each value rounded once."""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.machine.portable import FUNCTIONS
from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import Rule, register
from fpsim.emulation.schemas import is_out, overloads

_cos = FUNCTIONS["cos"]
_UP_TO = 2.0**-60  # of the sum, where the series of the Bessel function ends


def _bartlett(x: Tensor) -> Tensor:
    return 1 - (2 * x - 1).abs()


def _hamming(x: Tensor, alpha: float = 0.54, beta: float = 0.46) -> Tensor:
    return alpha - beta * _cos(2 * pi * x)


def _blackman(x: Tensor) -> Tensor:
    return 0.42 - 0.5 * _cos(2 * pi * x) + 0.08 * _cos(4 * pi * x)


def _hann(x: Tensor) -> Tensor:
    return _hamming(x, 0.5, 0.5)


def _bessel_i0(x: Tensor) -> Tensor:
    """sum (x^2 / 4)^k / k!^2, all terms positive, in IEEE operations alone."""
    quarter, term, total, k = x * x / 4, torch.ones_like(x), torch.ones_like(x), 0
    while bool((term > _UP_TO * total).any()):
        k += 1
        term = term * quarter / (k * k)
        total = total + term
    return total


def _kaiser(x: Tensor, beta: float = 12.0) -> Tensor:
    across = 2 * x - 1
    inside = torch.clamp(1 - across * across, min=0)
    root = torch.from_numpy(inside.numpy() ** 0.5)
    return _bessel_i0(beta * root) / _bessel_i0(torch.tensor([float(beta)], dtype=torch.float64))


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "bartlett_window": _bartlett,
    "blackman_window": _blackman,
    "hamming_window": _hamming,
    "hann_window": _hann,
    "kaiser_window": _kaiser,
}


def _rule_for(op: torch._ops.OpOverload, formula: Callable[..., Tensor]) -> Rule:
    def make(machine: Machine, length: int, periodic: bool = True, *parameters: float, **kwargs: Any) -> Tensor:
        result = op(*((length,) if op._overloadname == "default" else (length, periodic, *parameters)), **kwargs)
        if result.dtype is not torch.float32 or result.device.type == "meta":
            return result
        machine.check(result)
        parts = length if periodic else length - 1
        x = torch.arange(length, dtype=torch.float64) / max(parts, 1)
        return machine.finish(formula(x, *parameters) if length > 1 else torch.ones(length, dtype=torch.float64))

    return make


for _name, _formula in FORMULAS.items():
    for _op in overloads(_name).values():
        if not is_out(_op):
            register(_op, family="constant")(_rule_for(_op, _formula))
