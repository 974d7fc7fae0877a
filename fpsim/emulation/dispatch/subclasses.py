"""Kinds of tensors that torch takes apart: operations on them become those on what they hold, which meet their rules.

Others have no rules, as nothing here says what their elements are.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.masked import MaskedTensor
from torch.nested._internal.nested_tensor import NestedTensor

from fpsim.emulation.errors import UnsupportedOp, UnsupportedTensor

_TAKEN_APART = (NestedTensor, MaskedTensor)
_PLAIN = torch.Tensor.__torch_dispatch__

#: What to use in the place of other kinds, by name: to import torch.distributed.tensor takes long.
_INSTEAD = {"DTensor": "x.to_local(), the part of it that this process has"}


def are_taken_apart(types: Iterable[type]) -> bool:
    """Whether one of these kinds of operands is such a one, so that a mode has nothing to compute.

    Raises UnsupportedOp for a kind that has no rules and whose substitute is known.
    """
    for kind in types:
        if kind.__name__ in _INSTEAD:
            raise UnsupportedOp(f"an operand is a {kind.__name__}, which has no rules: compute with {_INSTEAD[kind.__name__]}")
    return any(issubclass(kind, _TAKEN_APART) for kind in types)


def refuse_to_hold(name: str, tensor: torch.Tensor) -> None:
    """Raise UnsupportedTensor for a parameter or buffer of a kind that says itself what operations do: none would round it."""
    if tensor.is_nested or type(tensor).__torch_dispatch__ is not _PLAIN:
        kind = "NestedTensor" if tensor.is_nested else type(tensor).__name__
        instead = _INSTEAD.get(kind, "the tensors that it is made of")
        raise UnsupportedTensor(f"{name} is a {kind}, which cannot be rounded: let the model hold {instead}")
