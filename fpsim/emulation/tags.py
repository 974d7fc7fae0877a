"""Marks on tensor storages: which hold values of a format, and whose they are.

An attribute of `untyped_storage()` survives views and `detach`, is shared by aliases, and vanishes with the memory.
"""

from __future__ import annotations

from typing import Any

import torch


class Tag:
    """Compared by identity; a machine takes a new one whenever its context is left."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


#: On a storage that is read as it is and never rounded: an optimizer's step count.
EXEMPT = Tag("exempt")


def mark(tensor: torch.Tensor, tag: Tag) -> torch.Tensor:
    """Say that the tensor's whole storage holds values of the tag's format; returns the tensor."""
    tensor.untyped_storage()._fpsim = tag  # type: ignore[attr-defined]
    return tensor


def tag_on(tensor: torch.Tensor) -> Tag | None:
    """The tag on the tensor's storage; None too for tensors that have no storage."""
    try:
        return getattr(tensor.untyped_storage(), "_fpsim", None)
    except NotImplementedError:
        return None


def unmark(tensor: torch.Tensor) -> None:
    """Forget what the tensor's storage holds."""
    storage = tensor.untyped_storage()
    if getattr(storage, "_fpsim", None) is not None:
        storage._fpsim = None  # type: ignore[attr-defined]


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements lie side by side in memory, in whatever order of axes, none twice."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 0:
            return True
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def covers_storage(tensor: torch.Tensor) -> bool:
    """Whether the tensor's elements are the whole of its storage."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes() and (
        tensor.is_contiguous() or is_dense(tensor)
    )


def set_owner(tensor: torch.Tensor, role: str, owner: Any) -> None:
    """Say whose parameter this storage is; role is "emulated" or "original"."""
    tensor.untyped_storage()._fpsim_owner = (role, owner)  # type: ignore[attr-defined]


def owner_of(tensor: torch.Tensor) -> tuple[str, Any] | None:
    """What `set_owner` said, or None."""
    return getattr(tensor.untyped_storage(), "_fpsim_owner", None)
