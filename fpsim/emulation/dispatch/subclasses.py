"""Kinds of tensors that torch takes apart: operations on them become those on what they hold, which meet their rules."""

from __future__ import annotations

from collections.abc import Iterable

from torch.masked import MaskedTensor
from torch.nested._internal.nested_tensor import NestedTensor

_TAKEN_APART = (NestedTensor, MaskedTensor)


def are_taken_apart(types: Iterable[type]) -> bool:
    """Whether one of these kinds of operands is such a one, so that a mode has nothing to compute."""
    return any(issubclass(kind, _TAKEN_APART) for kind in types)
