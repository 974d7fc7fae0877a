"""Whether torch takes a call with half tensors: where it refuses, it raises here what it raises itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from fpsim.emulation.machine.limits import LARGEST, SMALL, in_fp32
from fpsim.emulation.numbers import places
from fpsim.emulation.schemas import INDEX_PUT, OF_THE_FIRST, mapped, name_of, overloads, tensors_in

#: What refuses numbers beyond the range as a float32 operation, where the half one makes infinities of them.
_READS_FLOAT32 = frozenset(
    (*overloads("linspace").values(), *overloads("logspace").values(), torch.ops.aten.normal.float_Tensor)
)


class Acceptance:
    """Torch is asked once for each operation and what the question is about, on copies."""

    def __init__(self) -> None:
        self._accepted: dict[Any, Any] = {}  # by operation, and the numbers or dtypes that it takes: a result's dtype

    def of_numbers(self, func: Any, args: Any, kwargs: dict[str, Any], dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
        """The arguments as the operation reads them; raises what torch raises of a number that its dtype does not hold.

        Torch raises where a number is converted, not where it is computed with.
        """
        values = [args[index] if index < len(args) else kwargs.get(name) for index, name in places(func)]
        if name_of(func) in OF_THE_FIRST or fills_a_mask(func, args):  # where torch reads a number out of a tensor
            values = [value.item() if isinstance(value, torch.Tensor) and not value.dim() else value for value in values]
        values = [value for value in values if value is not None and not isinstance(value, torch.Tensor)]
        if not values:
            return args, kwargs
        limit = torch.finfo(dtype).max
        numbers = tuple(value for value in _flat(values) if type(value) in (float, int) and limit < abs(value) < math.inf)
        if numbers:
            self._ask(func, args, kwargs, (dtype, numbers))
        return mapped(_within_float32, (args, kwargs), float) if func in _READS_FLOAT32 else (args, kwargs)

    def of_kinds(self, func: Any, args: Any, kwargs: dict[str, Any]) -> torch.dtype | None:
        """The dtype of the first result, None where torch has no kernel; raises what torch raises of these dtypes together."""
        return self._ask(func, args, kwargs, tuple(map(_kind, _flat((*args, *kwargs.values())))))

    def _ask(self, func: Any, args: Any, kwargs: dict[str, Any], about: Any) -> torch.dtype | None:
        if (func, about) in self._accepted:
            return self._accepted[func, about]
        found = None
        arguments, named = mapped(_copied, (args, kwargs), (torch.Tensor, torch.Generator))
        try:
            with torch.random.fork_rng(devices=[]):
                found = next((item.dtype for item in tensors_in([func(*arguments, **named)])), None)
        except RuntimeError as error:
            if "not implemented" not in str(error):
                raise
        self._accepted[func, about] = found
        return found


def fills_a_mask(func: Any, args: Any) -> bool:
    """Whether this puts a tensor of no dimensions where a mask says: the one `index_put` that takes another dtype."""
    if name_of(func) not in INDEX_PUT or args[0].dtype not in SMALL or args[2].dim():
        return False
    return all(item is None or item.dtype is torch.bool for item in args[1])


def _within_float32(value: float) -> float:
    """A number beyond float32's range as the infinity that it is to whatever computes in it."""
    return in_fp32(value) if abs(value) > LARGEST else value


def _kind(item: Any) -> Any:
    """What of an argument decides whether torch takes it: dtype and dimensions of a tensor, type of a number, a switch."""
    if isinstance(item, torch.Tensor):
        return item.dtype, item.dim()
    return item if item is None or isinstance(item, (bool, str, torch.dtype)) else type(item)


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _copied(value: Any) -> Any:
    return value.clone_state() if isinstance(value, torch.Generator) else value.detach().clone()
