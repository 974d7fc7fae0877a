"""Kinds of tensors that torch takes apart: operations on them become those on what they hold, which meet their rules.

Others have no rules, as nothing here says what their elements are.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.masked import MaskedTensor
from torch.nested._internal.nested_tensor import NestedTensor

from fpsim.emulation.errors import UnsupportedTensor

_TAKEN_APART = (NestedTensor, MaskedTensor)
_PLAIN = torch.Tensor.__torch_dispatch__

#: What to use in the place of other kinds, by name: to import torch.distributed.tensor takes long.
_INSTEAD = {"DTensor": "x.to_local(), the part of it that this process has"}


def are_taken_apart(types: Iterable[type]) -> bool:
    """Whether one of these kinds of operands is such a one, so that a mode has nothing to compute."""
    return any(issubclass(kind, _TAKEN_APART) for kind in types)


def instead_of(kinds: Iterable[str]) -> str:
    """What to compute with, and hold, in the place of tensors of kinds of these names."""
    return next((_INSTEAD[kind] for kind in kinds if kind in _INSTEAD), "the tensors that they are made of")


def refuse_to_hold(name: str, tensor: torch.Tensor) -> None:
    """Raise UnsupportedTensor for a parameter or buffer of a kind that says itself what operations do: none would round it."""
    if tensor.is_nested or type(tensor).__torch_dispatch__ is not _PLAIN:
        kind = "NestedTensor" if tensor.is_nested else type(tensor).__name__
        raise UnsupportedTensor(f"{name} is a {kind}, which cannot be rounded: let the model hold {instead_of([kind])}")
