"""What a run showed, as remedies ask for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fpsim.emulation.advising.trial import Trial
from fpsim.emulation.machine.policy import Policy
from fpsim.numbers.formats import Format, get_format
from fpsim.report.records import Event

_SUMS = ("mm", "addmm", "bmm", "baddbmm")
_NORMS = ("norm",)  # in the lower-case name of a class


@dataclass(frozen=True)
class Evidence:
    """One run: what broke first in it, and where.

    fmt : the format of the numbers that broke
    """

    trial: Trial
    model: nn.Module
    given: Any  # the format or mapping that the user gave
    fmt: Format

    @property
    def event(self) -> Event | None:
        return self.trial.report.first

    @property
    def kind(self) -> str:
        """The kind of the first event; "error" where there is none, and the run is only too far off."""
        return "error" if self.event is None else self.event.kind

    @property
    def phase(self) -> str:
        return "" if self.event is None else self.event.phase

    @property
    def operation(self) -> str:
        return "" if self.event is None else self.event.operation

    @property
    def breaks(self) -> bool:
        """Whether an infinity or NaN was made, or a number lost at the end of the range."""
        return self.kind in ("overflow", "nonfinite")

    @property
    def policy(self) -> Policy:
        return self.trial.sim.policy

    def breaks_in(self, *phases: str) -> bool:
        """Whether it did in one of these passes."""
        return self.breaks and self.phase in phases

    @property
    def vanishes(self) -> bool:
        """Whether what is not zero became zero."""
        return self.kind in ("zero-gradient", "loss-underflow", "underflow")

    @property
    def loses_small_gradients(self) -> bool:
        """Whether nothing broke, and yet some of the numbers of the backward pass became zero."""
        return self.is_vague and any(row.phase == "backward" and row.counts.underflows for row in self.trial.report.rows)

    @property
    def stalls(self) -> bool:
        """Whether an update was lost."""
        return self.kind in ("stopped", "decay-lost")

    @property
    def is_vague(self) -> bool:
        """Whether nothing broke, and the run is only too far off."""
        return self.event is None

    @property
    def is_of_mask(self) -> bool:
        """Whether it is a NaN that a softmax, or a part of one, makes of infinities, in any arithmetic."""
        if self.event is None or self.kind != "nonfinite":
            return False
        operands = [value for _, value in self.event.operands]
        return "softmax" in self.operation or bool(operands and all(map(math.isinf, operands)))

    @property
    def has_narrow_sums(self) -> bool:
        """Whether sums are accumulated in fewer bits than fp32 has."""
        held = self.policy.accumulator.held
        return held is not None and held.precision < get_format("fp32").precision

    @property
    def blames_sums(self) -> bool:
        """Whether what accumulates may be the cause."""
        return self.kind == "swamped" or (self.has_narrow_sums and (self.breaks or self.is_vague))

    @property
    def is_whole(self) -> bool:
        """Whether the blamed module is the model, and there is nothing in it."""
        return not self.path and not self.children

    @property
    def is_product(self) -> bool:
        return self.operation in _SUMS

    @cached_property
    def path(self) -> str | None:
        """The blamed module's, "" for the model itself; None for what runs outside of modules, and in modules of others."""
        return self.path_of(self._blamed)

    def path_of(self, name: str | None) -> str | None:
        """A module's path in the model by its name in reports."""
        if name and name in self.modules:
            return name
        return "" if name == type(self.model).__name__ else None

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        return dict(self.model.named_modules())

    @cached_property
    def _blamed(self) -> str | None:
        """Where the first event was, or else where an operation of the model alone errs most."""
        if self.event is not None:
            return self.event.module
        rows = [row for row in self.trial.report.rows if row.phase != "optimizer" and row.local and row.local.relative > 0]
        return max(rows, key=lambda row: row.local.relative).module if rows else None  # type: ignore[union-attr]

    @cached_property
    def children(self) -> tuple[str, ...]:
        """The names of the modules that are directly in the model and have anything in them that computes."""
        return tuple(name for name, child in self.model.named_children() if not isinstance(child, nn.ParameterList))

    @cached_property
    def norms(self) -> tuple[str, ...]:
        """The paths of normalization layers."""
        return tuple(path for path, module in self.modules.items() if is_norm(module))

    @cached_property
    def last(self) -> str | None:
        """The path of the last layer with parameters."""
        layers = [path for path, module in self.modules.items() if path and module._parameters]
        called = [module.path for module in self.trial.report.modules if module.path in layers]
        return called[-1] if called else None

    @cached_property
    def epsilon(self) -> float | None:
        """The optimizer's epsilon, if it has one."""
        groups = self.trial.optimizer.param_groups if self.trial.optimizer is not None else []
        return next((group["eps"] for group in groups if group.get("eps")), None)

    @property
    def is_by_module(self) -> bool:
        """Whether the given formats are a mapping already."""
        return isinstance(self.given, Mapping)

    def _buffers_in(self, path: str) -> Iterable[tuple[str, torch.Tensor]]:
        return self.modules[path].named_buffers(path, recurse=False)

    @cached_property
    def focus(self) -> tuple[tuple[str, ...], ...]:
        """The names of what is looked at by itself: the parameter that the first event is of, or each statistic that stands.

        Else the parameters and buffers of the blamed module, together.
        """
        named = [name for name, _ in (*self.model.named_parameters(), *self.model.named_buffers())]
        operands = {name.partition("[")[0] for name, _ in self.event.operands} if self.event is not None else set()
        if not operands.isdisjoint(named):
            return (tuple(name for name in named if name in operands),)
        if self.path is None:
            return ()
        if self.kind == "stale-statistic":
            paths = dict.fromkeys(self.path_of(event.module) for event in self.trial.report.events if event.kind == self.kind)
            buffers = (item for path in paths if path is not None for item in self._buffers_in(path))
            return tuple((name,) for name, buffer in buffers if buffer.is_floating_point())
        return (tuple(name for name in named if not self.path or name.startswith(f"{self.path}.")),)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes, by its class's name."""
    return any(word in type(module).__name__.lower() for word in _NORMS) and not list(module.children())


def format_of_model(policy: Policy, model: nn.Module) -> Format:
    """The narrowest format of a model's numbers: the policy's, or under "native" that of the dtypes of its parameters."""
    if not policy.is_native:
        systems = getattr(policy, "mapping", None)
        values = [item.enclosing for item in systems.values] if systems is not None else [policy.fmt]
        return min(values, key=lambda fmt: fmt.precision)
    dtypes = {parameter.dtype for parameter in model.parameters()}
    return get_format("bf16" if torch.bfloat16 in dtypes else "fp16")
