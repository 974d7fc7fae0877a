"""The losses of a script: the numbers that its backward passes start from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def losses_kept() -> Iterator[list[float]]:
    """A list that grows by a number with every backward pass from one number, loss scaling and all."""
    import torch

    losses: list[float] = []
    original = torch.autograd.backward

    def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
        roots = (tensors,) if isinstance(tensors, torch.Tensor) else tuple(tensors)
        if len(roots) == 1 and roots[0].numel() == 1:
            with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
                losses.append(float(roots[0].detach()))
        original(tensors, *args, **kwargs)

    torch.autograd.backward = backward
    try:
        yield losses
    finally:
        torch.autograd.backward = original
