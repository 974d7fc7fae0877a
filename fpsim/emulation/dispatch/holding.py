"""The short way: an operation on tensors that all hold values of the format is asked little before it is computed."""

from __future__ import annotations

from typing import Any

import torch

from fpsim.emulation.machine.marks import Tag

_Tensor, _Parameter, _FLOAT32 = torch.Tensor, torch.nn.Parameter, torch.float32
_NUMBERS = frozenset((float, int, type(None)))
_is_grad_enabled = torch.is_grad_enabled

#: What arguments are: others; float32 tensors whose storages bear the mark, and numbers after the first; such ones of which
#: the first may be a parameter whose change is meant (`machine/changes.py`).
OTHERS, HELD, CHANGED = range(3)


def look(args: tuple[Any, ...], tag: Tag) -> int:
    """What the arguments of an operation are. Of `HELD` ones no dtype, layout or change is left to ask about."""
    first = args[0]
    found = HELD
    for value in args:
        kind = type(value)
        if kind is _Tensor or kind is _Parameter:
            if value.dtype is not _FLOAT32:
                return OTHERS
            try:
                storage = value.untyped_storage()
            except NotImplementedError:  # as in `marks.tag_on`
                return OTHERS
            if getattr(storage, "_fpsim", None) is not tag:
                return OTHERS
            if value is first and (not _is_grad_enabled() if first.requires_grad else hasattr(storage, "_fpsim_parameter")):
                found = CHANGED
        elif kind not in _NUMBERS or value is first:
            return OTHERS
    return found
