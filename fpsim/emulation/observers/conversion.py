"""A parameter that was not itself any more once `fpsim.run` had rounded the model to its format."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fpsim.emulation.machine.limits import LARGEST
from fpsim.numbers.system import NumberSystem


@dataclass(frozen=True)
class Conversion:
    """What became of a parameter, and its first element of which that is so.

    kind : one of `report.records.EVENTS`: "overflow" (of `count` elements), or "underflow" (of all that were not 0)
    """

    kind: str
    parameter: str
    module: str
    index: tuple[int, ...]
    exact: float
    rounded: float
    count: int
    elements: int
    system: NumberSystem


def conversion_of(
    parameter: str, module: str, before: torch.Tensor, after: torch.Tensor, system: NumberSystem
) -> Conversion | None:
    """What happened to the numbers of a parameter that was rounded; None where it is nothing that an event is about.

    The largest float32 numbers stand for the format's own, and overflow nowhere.
    """
    is_beyond = (before > system.max_finite) | (before < system.min_finite)
    lost = is_beyond & before.isfinite() & (before.abs() != LARGEST)
    if not system.saturate:
        lost &= ~after.isfinite()
    kind = "overflow"
    if not bool(lost.any()):
        if bool(after.any()) or not bool(before.any()):
            return None
        kind, lost = "underflow", before != 0
    index = tuple(lost.nonzero()[0].tolist())
    numbers = float(before[index]), float(after[index]), int(lost.sum()), lost.numel()
    return Conversion(kind, parameter, module, index, *numbers, system)
