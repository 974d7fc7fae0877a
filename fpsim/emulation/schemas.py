"""What the schemas of torch's operations say, and the tensors among arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import torch

#: What has the dtype of its first operand, whatever it is filled with.
OF_THE_FIRST = frozenset(("masked_fill", "index_fill", "fill"))

INDEX_PUT = frozenset(("index_put", "_index_put_impl"))


@lru_cache(maxsize=4096)
def name_of(op: torch._ops.OpOverload) -> str:
    """The name of an operation without its namespace, and without the mark of its in-place form."""
    name = op._schema.name.rpartition("::")[2]
    return name if name.startswith("__") or not name.endswith("_") else name[:-1]


def tensors_in(values: Iterable[Any], kind: type = torch.Tensor) -> list[Any]:
    """The tensors (or another kind) among values, those inside lists, tuples and dictionaries too, in order."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, kind):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value, kind)
        elif isinstance(value, dict):
            found += tensors_in(value.values(), kind)
    return found


def mapped(function: Callable[[Any], Any], value: Any, kind: type | tuple[type, ...] = torch.Tensor) -> Any:
    """The value with the function applied to every tensor (or other kind) inside lists, tuples and dictionaries."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)([mapped(function, item, kind) for item in value])
    if isinstance(value, dict):
        return {key: mapped(function, item, kind) for key, item in value.items()}
    return value


def names(text: str) -> list[str]:
    """The names of operations in a text."""
    return text.split()


def overloads(name: str) -> dict[str, torch._ops.OpOverload]:
    """Every overload of `aten.<name>` that takes a tensor or makes one, by its name; empty where torch has none."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return {}
    by_name = {overload: getattr(packet, overload) for overload in packet.overloads()}
    return {overload: op for overload, op in by_name.items() if "Tensor" in str(op._schema)}


def is_out(op: torch._ops.OpOverload) -> bool:
    """Whether the overload writes to arguments that are given by keyword (`out=` and its kin)."""
    return any(
        argument.kwarg_only and argument.alias_info and argument.alias_info.is_write for argument in op._schema.arguments
    )


def inputs_of(op: torch._ops.OpOverload) -> list[tuple[str, str]]:
    """Names and types of an overload's arguments."""
    return [(argument.name, str(argument.type)) for argument in op._schema.arguments]


def outputs_and_inputs(op: torch._ops.OpOverload) -> tuple[list[str], list[tuple[str, str]]]:
    """What an `out=` overload writes to, and names and types of its other arguments."""
    outputs = [argument.name for argument in op._schema.arguments if argument.alias_info and argument.alias_info.is_write]
    return outputs, [item for item in inputs_of(op) if item[0] not in outputs]


def each_element(args: Any, kwargs: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of an operation on lists, taken apart: lists of one element each."""
    count = len(args[0])

    def part(value: Any, index: int) -> Any:
        return [value[index]] if isinstance(value, (list, tuple)) and len(value) == count else value

    for index in range(count):
        yield tuple(part(value, index) for value in args), {key: part(value, index) for key, value in kwargs.items()}
