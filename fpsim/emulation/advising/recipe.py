"""`Recipe`: a way to run a training step, as a value; its `code` is what is tried, and what is printed to be pasted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fpsim.emulation.machine.settings import ROLES

WIDE = "fp32"

_FINITE = """
def finite(x):
    if not torch.is_tensor(x) or x.is_complex():
        return x
    lowest = torch.finfo(torch.float32).min
    if x.dtype is torch.bool:
        return torch.zeros(x.shape).masked_fill(x, lowest)
    return x.clamp(min=lowest) if x.is_floating_point() else x

"""


@dataclass(frozen=True)
class Call:
    """How the user's step is called: on the parts of a batch or on the whole; whether it returns outputs beside the loss."""

    spreads: bool
    trains: bool
    returns_pair: bool = False


@dataclass(frozen=True)
class Rewrite:
    """A method or function, written anew.

    owner    the name of the class whose modules have the method, or of the file (as Python imports it) that has the function
    imports  of what it reads of its file
    """

    owner: str
    name: str
    source: str
    is_function: bool = False
    imports: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return self.name if self.is_function else f"{self.owner}.{self.name}"


@dataclass(frozen=True)
class Recipe:
    """The user's step, and what is changed of it.

    settings    `run`'s arguments as they were given; those that have no short text are named in the code
    entries     what the mapping of formats has beside the one given: roles and keys of modules, in order
    accumulate  the accumulator instead of the one given
    loss_scale  what the loss is multiplied by, and the gradients are divided by
    epsilon     that of the optimizer, instead of its own
    wrapper     what is put around the optimizer: an expression with {} in its place
    clip        the largest norm of all gradients together
    clamps      modules whose inputs are bounded by a number
    masks       modules whose masks are made of finite numbers
    rewrites    methods and functions that are written anew
    """

    settings: tuple[tuple[str, Any], ...]
    call: Call
    entries: tuple[tuple[str, Any], ...] = ()
    accumulate: str | None = None
    loss_scale: float = 1.0
    epsilon: float | None = None
    wrapper: str = ""
    clip: float | None = None
    clamps: tuple[tuple[str, float], ...] = ()
    masks: tuple[str, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()

    def having(self, **changes: Any) -> Recipe:
        """This recipe with something more changed."""
        return replace(self, **changes)

    def with_formats(self, *entries: tuple[str, Any]) -> Recipe:
        """With more entries of the mapping of formats, the last ones; those of single roles of a module leave it its others."""
        new = dict(entries)
        hidden = tuple(f"{key}." for key, value in entries if isinstance(value, str) and key not in ROLES)
        kept = []
        for key, value in self.entries:
            if isinstance(new.get(key), Mapping):
                kept += [(key_of(key, True), value)] if isinstance(value, str) else []
            elif key not in new and not key.startswith(hidden):
                kept.append((key, value))
        return replace(self, entries=(*kept, *entries))

    def code(self) -> str:
        """A script in the names of `advise`'s arguments: model, data, step, optimizer, and settings that have no short text."""
        return "\n".join([*self._rewritten(), *self._simulation(), *self._optimizer(), *self._loop()])

    def _rewritten(self) -> list[str]:
        imports = dict.fromkeys(line for rewrite in self.rewrites for line in rewrite.imports)
        lines = [*imports]
        for rewrite in self.rewrites:
            lines.append(rewrite.source)
            if rewrite.is_function:
                lines += [f"import {rewrite.owner}", f"{rewrite.owner}.{rewrite.name} = {rewrite.name}"]
            lines.append("")
        return lines

    def _simulation(self) -> list[str]:
        settings = {name: literal(name, value) for name, value in self.settings}
        if self.accumulate is not None:
            settings["accumulate"] = repr(self.accumulate)
        if self.entries:
            settings["fmt"] = self._mapping(settings["fmt"])
        lines = [f"sim = fpsim.run(model, {', '.join(f'{name}={value}' for name, value in settings.items())})"]
        for rewrite in self.rewrites:
            if rewrite.is_function:
                continue
            lines += [
                "for module in sim.model.modules():",
                f"    if type(module).__name__ == {rewrite.owner!r}:",
                f"        module.{rewrite.name} = {rewrite.name}.__get__(module)",
            ]
        for path, limit in self.clamps:
            bounded = f"x.clamp(-{limit!r}, {limit!r}) if torch.is_tensor(x) and x.is_floating_point() else x"
            lines += [
                f"sim.model.get_submodule({path!r}).register_forward_pre_hook(",
                f"    lambda module, inputs: tuple({bounded} for x in inputs)",
                ")",
            ]
        return [*lines, *self._masks()]

    def _masks(self) -> list[str]:
        lines = _FINITE.splitlines() if self.masks else []
        for path in self.masks:
            lines += [
                f"sim.model.get_submodule({path!r}).register_forward_pre_hook(",
                "    lambda module, args, named: (tuple(map(finite, args)), {key: finite(x) for key, x in named.items()}),",
                "    with_kwargs=True,",
                ")",
            ]
        return lines

    def _mapping(self, fmt: str) -> str:
        formats = dict(self.settings)["fmt"]
        if not isinstance(formats, Mapping) and set(dict(self.entries)) == {"*"}:
            return repr(dict(self.entries)["*"])
        first = f"**{fmt}" if isinstance(formats, Mapping) else f"'*': {fmt}"
        entries = dict(self.entries)
        if not isinstance(formats, Mapping) and "*" in entries:
            first = f"'*': {entries.pop('*')!r}"
        parts = [first, *(f"{key!r}: {fmt if value == '' else repr(value)}" for key, value in entries.items())]
        return f"{{{', '.join(parts)}}}"

    def _optimizer(self) -> list[str]:
        if not self.call.trains:
            return []
        made = "optimizer(sim.parameters())"
        lines = [f"opt = {self.wrapper.format(made) if self.wrapper else made}"]
        if self.epsilon is not None:
            lines += ["for group in opt.param_groups:", f"    group['eps'] = {self.epsilon!r}"]
        return lines

    def _loop(self) -> list[str]:
        batch = "*batch" if self.call.spreads else "batch"
        if not self.call.trains:
            return ["with sim, torch.no_grad():", "    for batch in data:", f"        result = step(sim, {batch})"]
        scale = self.loss_scale
        names = "loss, outputs" if self.call.returns_pair else "loss"
        lines = ["with sim:", "    for batch in data:", f"        {names} = step(sim, {batch})", "        opt.zero_grad()"]
        lines.append("        loss.backward()" if scale == 1 else f"        (loss * {scale!r}).backward()")
        if scale != 1:
            lines += [
                "        for p in sim.parameters():",
                "            if p.grad is not None:",
                f"                p.grad = p.grad / {scale!r}",
            ]
        if self.clip is not None:
            lines.append(f"        torch.nn.utils.clip_grad_norm_(sim.parameters(), {self.clip!r})")
        return [*lines, "        opt.step()"]


def literal(name: str, value: Any) -> str:
    """A setting as text: itself where that is short and complete, else the name of the argument."""
    return repr(value) if _is_plain(value) else name


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (str, int, float))


def key_of(path: str, is_other: bool = False) -> str:
    """A module's path as the key of a mapping, or another such key; a role's name in brackets, so that it is no role."""
    return f"[{path[0]}]{path[1:]}" if path in ROLES or is_other else path
