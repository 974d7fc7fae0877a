"""Nothing is emulated by half: a backward pass or an optimizer step outside the context raises."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from fpsim.emulation import tags
from fpsim.emulation.context import Emulation, current
from fpsim.emulation.errors import OutsideContext


class Guard:
    """A hook of tensors and autograd nodes that raises when a gradient arrives outside the emulation's context.

    It does not keep the emulation alive, unless told to.
    """

    def __init__(self, emulation: Emulation, keep: bool = False):
        self.emulation = weakref.ref(emulation)
        self._kept = emulation if keep else None

    def __call__(self, gradients: Any) -> None:
        emulation = self.emulation()
        inside = current()
        if emulation is not None and not emulation.active and (inside is None or inside.policy != emulation.policy):
            raise OutsideContext(
                "backward() through what was emulated, outside its context, would compute in float32; call it inside "
                "`with sim:` or the block of `fpsim.emulate`"
            )


_guards = WeakIdKeyDictionary()


def guard_parameter(parameter: torch.Tensor, guard: Guard) -> None:
    """Put the guard on a parameter, once; it stays when the data is replaced."""
    if _guards.get(parameter) is guard:
        return
    _guards[parameter] = guard
    if parameter.requires_grad:
        parameter.register_hook(guard)


def guard_outputs(outputs: Any, guard: Guard) -> None:
    """Put the guard on every tensor of a module's output that a backward pass can start from."""
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
            leaf.register_hook(guard)


def _holders(optimizer: torch.optim.Optimizer) -> list[tuple[str, Any]]:
    found = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not isinstance(parameter, torch.Tensor) or parameter.device.type != "cpu":
                continue
            guard = _guards.get(parameter)
            owner = ("emulated", guard.emulation) if guard is not None else tags.owner_of(parameter)
            if owner is not None:
                role, reference = owner
                emulation = reference()
                if emulation is not None:
                    found.append((role, emulation))
    return found


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    emulation = current()
    holders = _holders(optimizer)
    if emulation is None:
        if any(role == "emulated" for role, _ in holders):
            raise OutsideContext(
                f"{type(optimizer).__name__}.step() on an emulated model outside its context would compute in float32; "
                "call it inside `with sim:`"
            )
        return
    if any(role == "original" and holder is emulation for role, holder in holders):
        raise OutsideContext(
            f"this {type(optimizer).__name__} holds the parameters of the original model, not of the emulated copy: "
            "make it from sim.parameters(), or run(model, inplace=True)"
        )
    emulation.machine.optimizer = optimizer
    reference = weakref.ref(emulation)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(parameter, torch.Tensor) and tags.owner_of(parameter) is None:
                tags.set_owner(parameter, "script", reference)  # so that its lost updates are counted


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    emulation = current()
    if emulation is not None and emulation.machine.optimizer is optimizer:
        emulation.machine.optimizer = None
        emulation.finish_step()


_installed = False


def install_optimizer_hooks() -> None:
    """Register the two global optimizer hooks, once in a process."""
    global _installed
    if not _installed:
        register_optimizer_step_pre_hook(_before_step)
        register_optimizer_step_post_hook(_after_step)
        _installed = True
