"""The operators that the torchvision at hand has."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fpsim.emulation.schemas import names


def operators(text: str) -> Iterator[torch._ops.OpOverload]:
    """Those of these names that there are."""
    for name in names(text):
        packet = getattr(torch.ops.torchvision, name, None)
        if packet is not None:
            yield packet.default
