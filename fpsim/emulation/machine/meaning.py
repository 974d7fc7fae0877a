"""What an operation means to change of a tensor, element by element: marks (`backend/numba/updates.py`) in row-major order.

What it means is its exact result, here computed in float64 or told by its operands; sums are computed as what they add, so
that no change is too small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fpsim.backend import threads
from fpsim.backend.numba import updates as kernels
from fpsim.emulation.machine import marks as tags
from fpsim.emulation.machine.finishing import BLOCK
from fpsim.emulation.registry import names

_FLOAT32 = torch.float32
_HELD_BY_FLOAT32 = (_FLOAT32, torch.float16, torch.bfloat16)
COST = 2  # of a pass over an element, in multiply-adds
NOTHING = np.empty(0, np.float32)

#: Operations that add to what they write to: what they would make of zeros is the change.
ADDITIONS = frozenset(names("add sub addcmul addcdiv addmm addmv addr addbmm baddbmm index_add scatter_add index_put"))


def floats(tensor: torch.Tensor) -> torch.Tensor:
    """The elements in float32 (exactly, for the dtypes held by it) one after another: itself, or a copy.

    It is read by its address: an array made of it would keep torch from ever resizing it.
    """
    if tensor.dtype is _FLOAT32 and tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.detach().to(_FLOAT32, copy=True, memory_format=torch.contiguous_format)


def in_parts(size: int, task: Callable[[int, int], None]) -> None:
    if size < BLOCK:
        task(0, size)
    else:
        threads.run(task, threads.parts(size, COST * size, BLOCK))


def mark_meant(
    name: str, target: torch.Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any], marks: np.ndarray,
    base: np.ndarray = NOTHING,
) -> None:  # fmt: skip
    """Mark what an operation in place means to change; the float32 elements are copied to `base` unless it is empty."""
    few = _condition_of(name, target, rest, kwargs)
    if few is None:
        marks |= moved(_elements_meant(name, target, rest, kwargs))
        if not base.size:
            return
        few = kernels.NOTHING, target, target
    condition, *operands = few
    first = floats(operands[0])
    second = first if operands[1] is operands[0] else floats(operands[1])
    one, two, kept = tags.pointer_to(first), tags.pointer_to(second), tags.pointer_to(target)
    if marks.size < BLOCK:
        kernels.find_moved(condition, one, two, kept, base, marks)
        return

    def part(i: int, j: int) -> None:
        kernels.find_moved(condition, one + 4 * i, two + 4 * i, kept + 4 * i, base[i:j], marks[i:j])

    in_parts(marks.size, part)


def moved(mask: torch.Tensor) -> np.ndarray:
    return tags.array_of(mask).reshape(-1).view(np.uint8)


def mark_fused(
    before: torch.Tensor, after: torch.Tensor, start: torch.Tensor, step: torch.Tensor, decayed: torch.Tensor,
    without_decay: torch.Tensor, without_step: torch.Tensor,
) -> np.ndarray:  # fmt: skip
    """The marks of a fused step: see `mark_parts` in `backend/numba/updates.py`."""
    marks = np.empty(before.numel(), np.uint8)
    singles = [*map(floats, (before, after, without_decay, without_step))]
    old, new, no_decay, no_step = map(tags.pointer_to, singles)
    doubles = [tags.array_of(item).reshape(-1) for item in (start, step, decayed)]

    def part(i: int, j: int) -> None:
        of = 4 * i
        kernels.mark_parts(old + of, new + of, *(item[i:j] for item in doubles), no_decay + of, no_step + of, marks[i:j])

    in_parts(marks.size, part)
    return marks


def _elements_meant(name: str, target: torch.Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The elements that the operation's exact result differs from."""
    wide, others, named = widened((target, rest, kwargs))
    in_place = getattr(torch.Tensor, f"{name}_")
    adds = name in ADDITIONS and kwargs.get("beta", 1) == 1
    if name == "index_put":
        adds = bool(rest[2] if len(rest) > 2 else kwargs.get("accumulate"))
    return in_place(torch.zeros_like(wide), *others, **named) != 0 if adds else in_place(wide.clone(), *others, **named) != wide


def _condition_of(
    name: str, target: torch.Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[int, torch.Tensor, torch.Tensor] | None:
    """What tells the same of two tensors in float32, for what is done most: a condition of `find_moved`, and its operands."""
    first = rest[0]
    few = None
    if not isinstance(first, torch.Tensor):
        if name == "mul" and isinstance(first, float) and first != 1 and 0 < first <= 2:
            few = kernels.SCALED, target, target
    elif name in ("add", "sub") and len(rest) == 1 and kwargs.get("alpha", 1) != 0:
        few = kernels.NOT_ZERO, first, first
    elif name == "addcdiv" and len(rest) == 2 and kwargs.get("value", 1) != 0:
        few = kernels.QUOTIENT, first, rest[1]
    elif name == "copy":
        few = kernels.DIFFERENT, target, first
    if few is None or not all(item is target or item.shape == target.shape for item in few[1:]):  # type: ignore[union-attr]
        return None
    return few if few[1].dtype in _HELD_BY_FLOAT32 and few[2].dtype in _HELD_BY_FLOAT32 else None


def marks_of(name: str, target: torch.Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    """The marks of `mark_meant`."""
    marks = np.zeros(target.numel(), np.uint8)
    mark_meant(name, target, rest, kwargs, marks)
    return marks


def widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(map(widened, value))
    return {key: widened(item) for key, item in value.items()} if isinstance(value, dict) else value
