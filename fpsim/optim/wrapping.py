"""An optimizer around another one, which it shares parameters and hyperparameters with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from fpsim.emulation.dispatch.context import current
from fpsim.optim.changes import Changes


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """What the closure of a step returns, evaluated before the step; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class WrappedOptimizer(torch.optim.Optimizer):
    """Computes what the inner optimizer would add to each parameter, and stores it in its own way.

    `param_groups` are the inner optimizer's, so that schedulers and `zero_grad` work on either. `state_dict` holds both
    states. A closure is evaluated once, before the step; optimizers that need it within (`LBFGS`) are refused.
    """

    #: Whether what it stores is drawn, so that a change that does not show has had its chance.
    draws = False

    def __init__(self, inner: torch.optim.Optimizer):
        if not isinstance(inner, torch.optim.Optimizer):
            raise TypeError(f"the first argument is a torch optimizer, not {type(inner).__name__}")
        if isinstance(inner, (torch.optim.LBFGS, WrappedOptimizer)):
            raise TypeError(f"{type(inner).__name__} cannot be wrapped: its steps are not one change of each parameter")
        self.inner = inner
        super().__init__(inner.param_groups, inner.defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the group joins the inner optimizer too."""
        if not any(group is param_group for group in self.inner.param_groups):
            self.inner.add_param_group(param_group)
        self.param_groups.append(param_group)

    def parameters(self) -> Iterator[torch.Tensor]:
        """Every parameter, once."""
        yield from (item for group in self.param_groups for item in group["params"])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of the inner optimizer, stored; returns what the closure does."""
        loss, emulation = loss_of(closure), current()
        updates = None if emulation is None else emulation.machine.updates
        with torch.no_grad(), nullcontext() if updates is None else updates.set_aside():
            changes = Changes(self.parameters())
            with changes:
                self.inner.step()
            for index, parameter in enumerate(self.parameters()):
                change = changes.of(parameter)
                if change is None:
                    continue
                start, before = changes.start(parameter), dict(self.state[parameter])
                parameter.copy_(self.stored(index, parameter, start, change))
                if updates is not None:
                    with _disable_current_modes():
                        updates.tell(parameter, start, change != 0, self._kept(parameter, change, before))
        return loss

    def _kept(self, parameter: torch.Tensor, change: torch.Tensor, before: dict[str, Any]) -> torch.Tensor:
        """The elements whose change is kept, whether the parameter shows it or not: by its state, which was this before."""
        if self.draws:
            return change != 0
        kept = torch.zeros_like(change, dtype=torch.bool)
        for name, value in self.state[parameter].items():
            if isinstance(value, torch.Tensor) and value.shape == change.shape:
                kept |= value != before.get(name, 0.0)
        return kept

    def stored(self, index: int, parameter: torch.Tensor, start: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """The new values of a parameter that held `start` and is to change by `change`, in float64."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's under "inner", and under "stored" what is kept of each parameter, in order."""
        return {"inner": self.inner.state_dict(), "stored": [dict(self.state[item]) for item in self.parameters()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """ValueError where the number of parameters differs."""
        parameters = list(self.parameters())
        if len(state_dict["stored"]) != len(parameters):
            raise ValueError(f"the state is of {len(state_dict['stored'])} parameters, the optimizer has {len(parameters)}")
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups = self.inner.param_groups
        for parameter, kept in zip(parameters, state_dict["stored"], strict=True):
            self.state[parameter] = {
                key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in kept.items()
            }
