"""Nothing is emulated by half: outside the context a call of a module, a backward pass or an optimizer step raises."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from types import FrameType
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from fpsim.emulation.dispatch.context import Emulation, current, is_innermost
from fpsim.emulation.errors import OutsideContext
from fpsim.emulation.machine import marks


def _is_outside(emulation: Emulation | None) -> bool:
    """Whether what belongs to this emulation would be computed here by something else."""
    inside = current()
    return emulation is not None and not emulation.active and (inside is None or inside.policy != emulation.policy)


class Guard:
    """A hook of tensors and autograd nodes that raises when a gradient arrives outside the emulation's context.

    It does not keep the emulation alive, unless told to.
    """

    def __init__(self, emulation: Emulation, keep: bool = False):
        self.emulation = weakref.ref(emulation)
        self._kept = emulation if keep else None

    def __call__(self, gradients: Any) -> None:
        if _is_outside(self.emulation()):
            raise OutsideContext(
                "backward() through what was emulated, outside its context, would compute in float32; call it inside "
                "`with sim:` or the block of `fpsim.emulate`"
            )


#: Modules of simulated models, by identity, and the emulations that they belong to.
_simulated: dict[int, tuple[weakref.ref[torch.nn.Module], weakref.ref[Emulation]]] = {}
_module_hook: Any = None


def guard_modules(modules: Iterable[torch.nn.Module], emulation: Emulation) -> None:
    """Let the call of any of these modules outside the emulation's context raise.

    Nothing is put on the modules themselves, so that copies of them, and what is saved of them, are free of it.
    """
    global _module_hook
    owner = weakref.ref(emulation)
    for module in modules:
        key = id(module)
        simulated = _simulated.get(key)
        if simulated is None or simulated[1]() is not emulation:
            _simulated[key] = weakref.ref(module, lambda _, key=key: _release(key)), owner  # type: ignore[misc]
    if _module_hook is None and _simulated:
        _module_hook = register_module_forward_pre_hook(_before_call)


def _release(key: int) -> None:
    global _module_hook
    _simulated.pop(key, None)
    if not _simulated and _module_hook is not None:
        _module_hook.remove()
        _module_hook = None


def _before_call(module: torch.nn.Module, args: Any) -> None:
    simulated = _simulated.get(id(module))
    if simulated is not None and not is_innermost(simulated[1]):  # the one test that torch.compile sees of other modules
        _refuse_outside(module)


@torch._disable_dynamo  # what torch.compiler.disable does, without importing torch._dynamo, which takes a second, here
def _refuse_outside(module: torch.nn.Module) -> None:
    simulated = _simulated.get(id(module))
    emulation = simulated[1]() if simulated is not None else None
    if _is_outside(emulation):
        name = emulation.names.get(id(module), "")  # type: ignore[union-attr]
        raise OutsideContext(
            f"{name or 'a module'} ({type(module).__name__}) of an emulated model was called outside its context, where it "
            "would compute in float32; call it inside `with sim:`, or the simulation itself: sim(...), or a method of it"
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
    holders = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not isinstance(parameter, torch.Tensor) or parameter.device.type != "cpu":
                continue
            owner = marks.owner_of(parameter)
            if owner is None or owner[0] != "emulated":
                guard = _guards.get(parameter)
                owner = owner if guard is None else ("emulated", guard.emulation)
            if owner is not None:
                role, reference = owner
                emulation = reference()
                if emulation is not None:
                    holders.append((role, emulation))
    return holders


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    emulation = current()
    holders = _holders(optimizer)
    if emulation is None:
        if any(role == "emulated" for role, _ in holders):
            plain = sum(len(group["params"]) for group in optimizer.param_groups) > len(holders)
            raise OutsideContext(
                f"{type(optimizer).__name__}.step() on an emulated model outside its context would compute in float32; "
                + ("give the emulated parameters an optimizer of their own, and " if plain else "")
                + "call it inside `with sim:`"
            )
        return
    if any(role == "original" and holder is emulation for role, holder in holders):
        raise OutsideContext(
            f"this {type(optimizer).__name__} holds the parameters of the original model, not of the emulated copy: "
            "make it from sim.parameters(), or run(model, inplace=True)"
        )
    machine = emulation.machine
    while machine.optimizer is not None and not _is_stepping(machine.optimizer):
        machine.updates.end_step(machine.optimizer)
        machine.end_step()
    machine.begin_step(optimizer)
    machine.updates.begin_step(optimizer)
    reference = weakref.ref(emulation)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(parameter, torch.Tensor):
                marks.set_parameter(parameter)
                if marks.owner_of(parameter) is None:
                    marks.set_owner(parameter, "script", reference)
                marks.set_beside((parameter.grad, optimizer.state.get(parameter)), parameter)


def _is_stepping(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step of this optimizer is running in this thread: one that raises ends without a word."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    emulation = current()
    if emulation is None:
        return
    emulation.machine.updates.end_step(optimizer)
    if emulation.machine.optimizer is optimizer:
        emulation.machine.end_step()
        if emulation.machine.optimizer is None:
            emulation.finish_step()


_installed = False


def install_optimizer_hooks() -> None:
    """Register the two global optimizer hooks, once in a process."""
    global _installed
    if not _installed:
        register_optimizer_step_pre_hook(_before_step)
        register_optimizer_step_post_hook(_after_step)
        _installed = True
