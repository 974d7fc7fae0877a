"""An operation once more in float64, on operands of the caller's choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fpsim.emulation.machine import marks
from fpsim.emulation.registry import IN_FLOAT64, positions
from fpsim.emulation.schemas import tensors_in

NARROW = (torch.float32, torch.float16, torch.bfloat16)
_FLOAT64 = torch.float64
_OF_SCALERS = ("grad_scale", "found_inf")  # which fused steps read in float32, whatever their parameters are
_ARITHMETIC = ("elementwise", "formula", "foreach")  # families that compute with Python numbers
_NO_FUNCTIONS = ("random", "collective")  # families whose results are no functions of their arguments


def is_widened(tensor: torch.Tensor) -> bool:
    """Whether a tensor stands for numbers that are float64 in float64: step counts and integers stay what they are."""
    return tensor.dtype in NARROW and marks.tag_on(tensor) is not marks.EXEMPT


def compute_in_float64(
    call: Any, widen: Callable[[torch.Tensor], torch.Tensor], number: Callable[[float], float] = float, **others: Any
) -> tuple[torch.Tensor, ...] | None:
    """What a `Call` made or wrote to, each tensor as the operation gives it on `widen(operand)`, which is written to in place.

    In the order of `Call.made`. `number` says what arithmetic reads Python numbers as; `others` are arguments in the place of
    its own. Where the operation asks for a dtype below float64, or for the default one, it is asked for float64. None for
    random numbers and collectives.
    """
    family = call.family
    if family in _NO_FUNCTIONS:
        return None
    wide: dict[int, torch.Tensor] = {}
    number = number if family in _ARITHMETIC else _as_it_is
    args = [_widened(value, wide, widen, number) for value in call.args]
    kwargs = {**call.kwargs, **others}
    kwargs |= {key: _widened(value, wide, widen, number) for key, value in kwargs.items() if key not in _OF_SCALERS}
    if _makes_the_default(call, args):
        kwargs["dtype"] = _FLOAT64
    operation = call.operation
    result = IN_FLOAT64.get(operation, operation)(*args, **kwargs)
    made = call.made
    if len(made) == 1 and made[0] is call.result:
        return (result,)
    found = {id(tensor): item for tensor, item in zip(tensors_in((call.result,)), tensors_in((result,)), strict=True)}
    found |= {id(tensor): wide[id(tensor)] for tensor in call.written}
    return tuple(found[id(tensor)] for tensor in made)


def is_pole(call: Any, result: torch.Tensor) -> bool:
    """Whether the elements of a `Call`'s result that are infinite are finite close by: as of log(0), and not of exp(1000).

    Close by is where all operands are a little nearer to 0, and those that are 0 the smallest number of float32.
    """

    def beside(tensor: torch.Tensor) -> torch.Tensor:
        value = call.as_read(tensor)
        return _beside(value.double()) if is_widened(tensor) else value.clone()

    close = compute_in_float64(call, beside, lambda value: float(_beside(torch.tensor(value, dtype=_FLOAT64))))
    if close is None:
        return False
    found = next(wide for tensor, wide in zip(call.made, close, strict=True) if tensor is result)
    return bool(found[result.isinf()].isfinite().all())


def _beside(value: torch.Tensor) -> torch.Tensor:
    return torch.where(value == 0, 2.0**-149, value * (1 - 2.0**-30))


def _widened(
    value: Any, wide: dict[int, torch.Tensor], widen: Callable[[torch.Tensor], torch.Tensor], number: Callable[[float], float]
) -> Any:
    """An argument for float64; `wide` has the tensors of the other ones, by the identity of what they stand for."""
    if isinstance(value, torch.Tensor):
        found = wide.get(id(value))
        if found is None:
            found = wide[id(value)] = widen(value)
        return found
    kind = type(value)
    if kind is float:
        return number(value)
    if kind is list or kind is tuple:
        return kind([_widened(item, wide, widen, number) for item in value])
    return _FLOAT64 if kind is torch.dtype and value in NARROW else value


def _as_it_is(value: float) -> float:
    return value


def _makes_the_default(call: Any, args: Any) -> bool:
    """Whether the dtype of the results is the default one: asked for by no argument, and not an operand's."""
    place = positions(call.operation)[0]
    if place < 0 or call.kwargs.get("dtype") is not None or (place < len(args) and args[place] is not None):
        return False
    return bool(call.results) and not any(item.is_floating_point() for item in tensors_in(args))
