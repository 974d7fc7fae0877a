"""What the checks of arguments share: requirements that raise, and integers that must lie in a range."""

from __future__ import annotations

from typing import Any

import torch

Arguments = dict[str, Any]

MOST_ELEMENTS = 1 << 28  # of an operand that a kernel makes on the way
MOST_ITERATIONS = 1 << 16
INDICES = frozenset((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))


class Untrusted(Exception):
    """What in the arguments a kernel must not be given."""


def within(values: torch.Tensor, low: int, high: int, subject: str) -> None:
    """Raises Untrusted unless they are integers from low up to but without high."""
    if values.dtype not in INDICES:
        raise Untrusted(f"{subject} are of {values.dtype}")
    if values.numel() == 0:
        return
    least, most = (int(value) for value in torch.aminmax(values.to(torch.int64)))
    if least < low or most >= high:
        raise Untrusted(f"{subject} go from {least} to {most}, and only {low} to {high - 1} exist")


def require(holds: bool, otherwise: str) -> None:
    """Raises Untrusted, saying what is otherwise."""
    if not holds:
        raise Untrusted(otherwise)


def require_at_most(value: Any, most: int, subject: str) -> None:
    """Raises Untrusted for a number, or an element of a tensor, that is larger in magnitude, and for NaN."""
    values = torch.as_tensor(value).double()
    require(bool((values.abs() <= most).all()), f"{subject} is beyond {most}")


def ascending(offsets: torch.Tensor, last: int, subject: str) -> None:
    """Raises Untrusted unless they ascend from 0 or more to at most the last."""
    within(offsets, 0, last + 1, subject)
    require(bool((offsets.diff() >= 0).all()), f"{subject} do not ascend")


def size_of(x: torch.Tensor, dim: int) -> int:
    """The size of a dimension; a number is a vector of one element."""
    return x.shape[dim] if x.dim() else 1
