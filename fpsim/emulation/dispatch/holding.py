"""The short way: an operation on tensors that all hold values of the format is asked nothing else before it is computed."""

from __future__ import annotations

from typing import Any

import torch

from fpsim.emulation.machine.marks import Tag

_Tensor, _Parameter, _FLOAT32 = torch.Tensor, torch.nn.Parameter, torch.float32
_is_grad_enabled = torch.is_grad_enabled


def all_hold(args: tuple[Any, ...], tag: Tag) -> bool:
    """Whether every argument is a float32 tensor whose storage bears the mark, or a number after the first.

    The first is no parameter whose change might be meant (`machine/changes.py`): no number of dtypes, of changes or of sparse
    operands is left to ask.
    """
    first = args[0]
    for value in args:
        kind = type(value)
        if kind is _Tensor or kind is _Parameter:
            if value.dtype is not _FLOAT32:
                return False
            try:
                storage = value.untyped_storage()
            except NotImplementedError:  # as in `marks.tag_on`
                return False
            if getattr(storage, "_fpsim", None) is not tag:
                return False
            if value is first and (
                not _is_grad_enabled() if first.requires_grad else hasattr(storage, "_fpsim_parameter")
            ):
                return False
        elif (kind is not float and kind is not int) or value is first:
            return False
    return True
