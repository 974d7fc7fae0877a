"""A recorded run as data: operations on numbered tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from fpsim.emulation.errors import UnsupportedOp

_without_dispatch = torch._C._DisableTorchDispatch  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Ref:
    """The tensor of that number."""

    index: int


@dataclass(frozen=True, eq=False)
class RecordedStep:
    """One operation: its arguments with a `Ref` for each tensor, and the numbers of its results (None: no tensor)."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int | None, ...]
    path: str

    def message(self, reason: str) -> str:
        name = self.op if isinstance(self.op, torch._ops.OpOverload) else self.op.__name__
        return f"{name} (called from {self.path or 'no module'}): {reason}"

    def refuse(self, reason: str) -> UnsupportedOp:
        return UnsupportedOp(self.message(reason))


@dataclass
class Trace:
    """`values` are what the emulated run computed; `references` are the exact values of what it started from.

    `integers` are the numbers of constants of integers and booleans.
    """

    steps: list[RecordedStep] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    references: dict[int, torch.Tensor] = field(default_factory=dict)
    integers: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    output: int = -1

    def double(self, number: int) -> torch.Tensor:
        """A value in float64."""
        return self.values[number].double()

    def add(self, value: torch.Tensor) -> int:
        with _without_dispatch():
            self.values.append(value.detach())
        return len(self.values) - 1
