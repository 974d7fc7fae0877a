"""One run of a recipe: its code is executed as it is printed, on the user's batches, and what it leaves behind is taken."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from fpsim.emulation.advising.recipe import Recipe, Rewrite
from fpsim.emulation.advising.taking import Taken, floats_in, state_of, wide
from fpsim.emulation.observers.events import Events
from fpsim.emulation.observers.observer import get_observers
from fpsim.emulation.observers.shadow import Shadow
from fpsim.emulation.simulation import Simulation
from fpsim.report.records import Event
from fpsim.report.report import Report

_SEED = 0  # of torch's generator

# Inside the package, so that lines of it are nobody's source and the user's line that called is found.
_FILE = os.path.join(os.path.dirname(os.path.abspath(sys.modules["fpsim"].__file__ or "")), "<advice>")


Note = Callable[[Taken, Callable[[torch.Tensor], torch.Tensor]], None]  # puts what it finds, made float64, where it belongs


@dataclass
class Subject:
    """What the user gave: a model, batches, a step, what makes an optimizer, the arguments of `run`."""

    model: nn.Module
    batches: list[Any]
    step: Callable[..., Any]
    optimizer: Callable[..., torch.optim.Optimizer] | None
    settings: dict[str, Any]
    generator: torch.Tensor | None = None  # the state of torch's generator; None: seeded

    def names(self) -> dict[str, Any]:
        """The names that a recipe's code reads."""
        arguments = {"fpsim": sys.modules["fpsim"], "torch": torch, **self.settings}
        return {**arguments, "model": self.model, "data": self.batches, "step": self.step, "optimizer": self.optimizer}


@dataclass
class Trial:
    """What came of it. of : what was taken, as far as it went; exact : the same of its float64 shadow, where there is one."""

    sim: Simulation
    report: Report
    optimizer: torch.optim.Optimizer | None
    of: Taken
    exact: Taken | None = None
    returns_pair: bool = False
    was_called: bool = False
    is_over: bool = True
    generator: torch.Tensor | None = None  # its state after the last step


class UntilItBreaks(Events):
    """Events that end the run at the first infinity or NaN that was not asked for."""

    def keep(self, key: tuple[str, ...], event: Event, is_nonfinite: bool) -> None:
        super().keep(key, event, is_nonfinite)
        if event.breaks:
            raise _Broken


class _Broken(Exception):
    """The run need not go on."""


class _Batches:
    """The user's batches, which take stock between the steps of the script that iterates over them."""

    def __init__(self, batches: list[Any], observers: tuple[Any, ...]):
        self._batches, self._observers = batches, observers
        self._shadow = next((item for item in observers if isinstance(item, Shadow)), None)
        self.of = Taken()
        self.exact = Taken() if self._shadow is not None else None
        self.returns_pair = self.was_called = self.is_over = False
        self.generator = torch.get_rng_state()
        self.names: dict[str, Any] = {}  # of the script

    def __iter__(self) -> Iterator[Any]:
        sim = self.names["sim"]
        sim.observe(self._observers)
        hooks = [module.register_forward_pre_hook(self._note_call) for module in sim.model.modules()]
        self._take(lambda taken, number: taken.start.update(state_of(sim.model, number)))
        for number, batch in enumerate(self._batches):
            yield batch
            if number in (0, len(self._batches) - 1):
                gradients = {name: item.grad for name, item in sim.model.named_parameters() if item.grad is not None}
                self._take(_gradients_to(gradients))
        self._take(lambda taken, number: taken.end.update(state_of(sim.model, number)))
        for hook in hooks:
            hook.remove()
        self.generator, self.is_over = torch.get_rng_state(), True

    def _note_call(self, module: nn.Module, args: Any) -> None:
        self.was_called = True

    def note(self, result: Any) -> None:
        """What the step returned."""
        self._take(lambda taken, number: taken.results.append([number(item) for item in floats_in(result)]))

    def _take(self, note: Note) -> None:
        with _disable_current_modes(), torch.no_grad():
            note(self.of, wide)
            if self.exact is not None:
                note(self.exact, self._exact)

    def _exact(self, tensor: torch.Tensor) -> torch.Tensor:
        assert self._shadow is not None
        exact = self._shadow.of(tensor)
        return wide(tensor if exact is None else exact)


def _gradients_to(gradients: dict[str, torch.Tensor]) -> Note:
    return lambda taken, number: taken.gradients.append({name: number(tensor) for name, tensor in gradients.items()})


def run_recipe(subject: Subject, recipe: Recipe, observe: Sequence[Any] = (), learns: bool = False) -> Trial:
    """Execute a recipe's code. Raises what it raises.

    learns : whether the step may return (loss, outputs) though the recipe does not know it yet
    """
    names = subject.names()
    batches = _Batches(subject.batches, get_observers(observe))

    def step(model: nn.Module, *batch: Any) -> Any:
        result = subject.step(model, *batch)
        batches.note(result)
        if recipe.call.trains:
            _check_loss(result)
        is_pair = isinstance(result, tuple)
        batches.returns_pair |= is_pair
        return result[0] if learns and is_pair else result

    names |= {"data": batches, "step": step}
    for rewrite in recipe.rewrites:
        names = {**_written_in(rewrite, subject.model), **names}
    batches.names = names
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        if subject.generator is None:
            torch.manual_seed(_SEED)
        else:
            torch.set_rng_state(subject.generator)
        with suppress(_Broken), _restored(recipe):
            exec(compile(recipe.code(), _FILE, "exec"), names)
    sim, ending = names["sim"], (batches.returns_pair, batches.was_called, batches.is_over, batches.generator)
    return Trial(sim, sim.report(), names.get("opt"), batches.of, batches.exact, *ending)


def _written_in(rewrite: Rewrite, model: nn.Module) -> dict[str, Any]:
    """The names of the file in which it was written first."""
    if rewrite.is_function:
        return vars(sys.modules[rewrite.owner])
    kind = next(type(module) for module in model.modules() if type(module).__name__ == rewrite.owner)
    names: dict[str, Any] = getattr(kind, rewrite.name).__globals__
    return names


@contextmanager
def _restored(recipe: Recipe) -> Iterator[None]:
    """Functions of files are in the end as they were."""
    owners = [(sys.modules[item.owner], item.name) for item in recipe.rewrites if item.is_function]
    before = [getattr(owner, name) for owner, name in owners]
    try:
        yield
    finally:
        for (owner, name), function in zip(owners, before, strict=True):
            setattr(owner, name, function)


def _check_loss(result: Any) -> None:
    loss = result[0] if isinstance(result, tuple) and len(result) == 2 else result
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise TypeError(
            f"step returned {kind}; where there is an optimizer it returns the loss, or (loss, outputs), and advise runs the "
            "backward pass and the optimizer's step itself, so that it can scale the one and change the other"
        )
    if not loss.requires_grad:
        raise ValueError("the loss does not depend on a parameter of the model that step was given: nothing can be trained")
