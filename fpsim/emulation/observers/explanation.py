"""One element of a result, explained: what it was computed from, its exact value and what became of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from fpsim.emulation.machine import marks
from fpsim.emulation.observers.call import Call
from fpsim.emulation.schemas import name_of

_AS_MATRICES = {"mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2)}


@dataclass
class Element:
    """An element: its index in the result, its operands by name, its exact value (None: there is none), the rounded one."""

    index: tuple[int, ...] = ()
    operands: tuple[tuple[str, float], ...] = ()
    exact: float | None = None
    rounded: float | None = None
    of_sum: int = field(default=0)  # how many products it is the sum of


def element_of(call: Call, result: torch.Tensor, exact: torch.Tensor | None, place: int) -> Element:
    """The element of that number, row-major, of a result whose exact values may be known."""
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), result.shape)) if result.dim() else ()
    found = Element(index, rounded=float(result[index]), exact=None if exact is None else float(exact[index]))
    factors = _AS_MATRICES.get(name_of(call.operation))
    if factors is not None:
        _explain_product(call, found, factors)
    else:
        found.operands = tuple(_operands_at(call, index, result))
    return found


def overflow_of(name: str, given: torch.Tensor, read: torch.Tensor, system: Any) -> tuple[Element, int]:
    """The first element that overflowed when a tensor of that name was read into a format, and how many did."""
    lost = given.isfinite() & ~read.isfinite()
    if not bool(lost.any()):  # they saturated
        lost = given.isfinite() & ((given > system.max_finite) | (given < system.min_finite))
    places = lost.reshape(-1).nonzero()
    if not places.numel():
        return Element(), 0
    index = tuple(map(int, torch.unravel_index(places[0, 0], given.shape)))
    exact = float(given[index])
    return Element(index, ((f"{name}[{', '.join(map(str, index))}]", exact),), exact, float(read[index])), places.numel()


def _operands_at(call: Call, index: tuple[int, ...], result: torch.Tensor) -> Any:
    for name, value in call.arguments_of(result).items():
        if call.name == "copy_" and name == "self":  # which it does not read: what was there may be anything
            continue
        if isinstance(value, float):
            yield name, value
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.is_cpu or not value.numel():
            continue
        given, value = value, marks.stored(call.as_read(value))
        try:
            read = float(value.expand(result.shape)[index])
            if call.was_outside(given) and (read == 0 or not math.isfinite(read)):
                came = float(given.expand(result.shape)[index])
                if came != read:
                    yield f"{name} from outside", came
            yield name, read
        except RuntimeError:  # not elementwise: the number of the largest magnitude, or one that is not finite
            flat = value.reshape(-1)
            yield f"largest of {name}", float(flat[flat.abs().nan_to_num(torch.inf).argmax()])


def _explain_product(call: Call, found: Element, factors: tuple[int, int]) -> None:
    left, right = (call.as_read(call.args[i]) for i in factors)
    *batch, row, column = found.index
    a, b = left[tuple(batch)][row].double(), right[tuple(batch)][:, column].double()
    if not a.numel():
        return
    names = [call.operation._schema.arguments[i].name for i in factors]
    k = int((a * b).abs().nan_to_num(torch.inf).argmax())
    where = ", ".join(map(str, (*batch, row, k))), ", ".join(map(str, (*batch, k, column)))
    pairs = zip(names, where, (float(a[k]), float(b[k])), strict=True)
    found.operands = tuple((f"{name}[{place}]", value) for name, place, value in pairs)
    found.of_sum = a.numel()


def sentence(element: Element, fmt: Any) -> str:
    """What an element was computed from, its exact value, and what the format made of it."""
    operands = ", ".join(f"{name} = {value:.6g}" for name, value in element.operands)
    parts = []
    if element.of_sum:
        parts.append(f"a sum of {element.of_sum} products, the largest of {operands}")
    elif operands:
        parts.append(f"of {operands}")
    if element.exact is not None:
        parts.append(f"exactly {element.exact:.6g}")
    if element.rounded is not None:
        if element.rounded == 0 and element.exact:
            limit = f"the smallest number of {fmt.name} is {fmt.enclosing.min_subnormal:.6g}"
        elif element.rounded == fmt.min_finite != -fmt.max_finite:
            limit = f"the least number of {fmt.name} is {fmt.min_finite:.6g}"
        else:
            limit = f"the largest number of {fmt.name} is {fmt.max_finite:.6g}"
        parts.append(f"became {element.rounded:.6g} in {fmt.name} ({limit})")
    where = f"element [{', '.join(map(str, element.index))}]" if element.index else "the result"
    return f"{where}, {', '.join(parts)}"
