"""The one table of rules: what emulation does with each torch operation.

A rule is a function `rule(machine, *args, **kwargs)` that gets the operation's own arguments and returns what the
operation returns. It runs below autograd with torch dispatch disabled. `machine.operand(tensor)` gives a
tensor of values of the format, `machine.finish(tensor)` rounds a fresh float32 or float64 result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

Rule = Callable[..., Any]


@dataclass(frozen=True)
class Entry:
    """One row of the table."""

    op: torch._ops.OpOverload
    family: str
    rule: Rule


TABLE: dict[torch._ops.OpOverload, Entry] = {}

#: The same, operation to function: what the dispatch mode looks up.
RULES: dict[torch._ops.OpOverload, Rule] = {}


def register(op: torch._ops.OpOverload, *, family: str = "custom") -> Callable[[Rule], Rule]:
    """A decorator that makes a function the rule of one operator overload.

    Example
    -------
    >>> @register(torch.ops.aten.hypot.default)                     # doctest: +SKIP
    ... def hypot(machine, a, b):
    ...     a, b = machine.operand(a).double(), machine.operand(b).double()
    ...     return machine.finish(torch.hypot(a, b))

    Raises
    ------
    TypeError : for anything but an OpOverload such as `torch.ops.aten.add.Tensor`.
    ValueError : if the operator has a rule already.
    """
    if not isinstance(op, torch._ops.OpOverload):
        raise TypeError(f"register takes an operator overload such as torch.ops.aten.add.Tensor, got {op!r}")

    def decorate(rule: Rule) -> Rule:
        if op in TABLE:
            raise ValueError(f"{op} already has a rule (family {TABLE[op].family!r})")
        TABLE[op] = Entry(op, family, rule)
        RULES[op] = rule
        return rule

    return decorate


def names(text: str) -> list[str]:
    """The names of operations in a text."""
    return text.split()


def overloads(name: str) -> dict[str, torch._ops.OpOverload]:
    """Every overload of `aten.<name>` that takes a tensor or makes one, by its name; empty where torch has none."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return {}
    found = {overload: getattr(packet, overload) for overload in packet.overloads()}
    return {overload: op for overload, op in found.items() if "Tensor" in str(op._schema)}


def is_out(op: torch._ops.OpOverload) -> bool:
    """Whether the overload writes to arguments that are given by keyword (`out=` and its kin)."""
    return any(
        argument.kwarg_only and argument.alias_info and argument.alias_info.is_write for argument in op._schema.arguments
    )


def register_functional(
    ops: str | Iterable[str], family: str, rule_for: Callable[[torch._ops.OpOverload], Rule | None]
) -> None:
    """Give every overload of the named ops the rule that `rule_for` makes, and derive the in-place and `out=` forms.

    Where `rule_for` returns None the overload stays without a rule.
    """
    for name in ops.split() if isinstance(ops, str) else ops:
        functional = {key: op for key, op in overloads(name).items() if not is_out(op)}
        for op in functional.values():
            rule = rule_for(op)
            if rule is not None:
                register(op, family=family)(rule)
        functional = {key: op for key, op in functional.items() if op in RULES}
        for op in overloads(f"{name}_").values():
            alike = [candidate for candidate in functional.values() if _inputs(candidate) == _inputs(op)]
            if alike and not is_out(op):
                register(op, family=family)(in_place(RULES[alike[0]]))
        for op in overloads(name).values():
            if is_out(op):
                _register_out(op, functional, family)


def _inputs(op: torch._ops.OpOverload) -> list[tuple[str, str]]:
    """Names and types of an overload's arguments."""
    return [(argument.name, str(argument.type)) for argument in op._schema.arguments]


def _register_out(op: torch._ops.OpOverload, functional: dict[str, torch._ops.OpOverload], family: str) -> None:
    """Join an `out=` overload to the functional overload with the same inputs."""
    outputs = [argument.name for argument in op._schema.arguments if argument.alias_info and argument.alias_info.is_write]
    inputs = [(argument.name, str(argument.type)) for argument in op._schema.arguments if argument.name not in outputs]
    for candidate in functional.values():
        if _inputs(candidate) == inputs:
            register(op, family=family)(with_out(RULES[candidate], outputs))
            return


@lru_cache(maxsize=4096)
def positions(op: torch._ops.OpOverload) -> tuple[int, tuple[tuple[int, str], ...]]:
    """(where `dtype` is among the arguments, or -1; (position, name) of every argument that the operation writes to)."""
    dtype, written = -1, []
    for index, argument in enumerate(op._schema.arguments):
        if argument.name == "dtype":
            dtype = index
        is_statistic = argument.name in ("running_mean", "running_var") and TABLE[op].family == "normalization"
        if is_statistic or (argument.alias_info is not None and argument.alias_info.is_write):
            written.append((index, argument.name))
    return dtype, tuple(written)


def each_element(args: Any, kwargs: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of an operation on lists, taken apart: lists of one element each."""
    count = len(args[0])

    def part(value: Any, index: int) -> Any:
        return [value[index]] if isinstance(value, (list, tuple)) and len(value) == count else value

    for index in range(count):
        yield tuple(part(value, index) for value in args), {key: part(value, index) for key, value in kwargs.items()}


def in_place(rule: Rule) -> Rule:
    """The rule of the in-place form: the result is written to the first argument."""

    def write_to_self(machine: Any, self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return machine.write(self, rule(machine, self, *args, **kwargs))

    return write_to_self


def with_out(rule: Rule, outputs: list[str]) -> Rule:
    """The rule of the `out=` form: results are written to the named keyword arguments, resized where empty."""

    def write_to_out(machine: Any, *args: Any, **kwargs: Any) -> Any:
        targets = [kwargs.pop(name) for name in outputs]
        results = rule(machine, *args, **kwargs)
        for target, result in zip(targets, results if isinstance(results, tuple) else (results,), strict=True):
            if target.shape != result.shape:
                target.resize_(result.shape)
            machine.write(target, result)
        return tuple(targets) if len(targets) > 1 else targets[0]

    return write_to_out
