"""What one operation reads, makes and rounds to, by the pass that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fpsim.emulation.machine.settings import ModuleSettings
from fpsim.numbers.rounding import Rounding
from fpsim.numbers.system import NumberSystem


@dataclass(frozen=True)
class Selection:
    """What one operation of a pass (named as the role of its results) reads and makes, for a module; None reads as it is."""

    result: NumberSystem
    role: str
    by: str
    module: ModuleSettings
    rounding: Rounding
    read: NumberSystem | None = None
    read_gradient: NumberSystem | None = None

    def storing(self, fmt: NumberSystem, role: str, module: ModuleSettings) -> Selection:
        """The same where the result is written to what holds values of the format."""
        mode = module.roundings.optimizer if self.by == "optimizer" else getattr(module.roundings, role)
        return replace(self, result=fmt, role=role, module=module, rounding=mode)


def forward_selection(module: ModuleSettings) -> Selection:
    activation = module.formats.activation
    return Selection(activation, "activation", "activation", module, module.roundings.activation, activation, activation)


def backward_selection(module: ModuleSettings) -> Selection:
    formats = module.formats
    mode = module.roundings.gradient
    return Selection(formats.gradient, "gradient", "gradient", module, mode, formats.activation, formats.gradient)


def update_selection(module: ModuleSettings, result: NumberSystem, role: str) -> Selection:
    return Selection(result, role, "optimizer", module, module.roundings.optimizer)
