"""What the operands' differences make of a result."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fpsim.emulation.certification.slopes import EPSILON, Slope, raised
from fpsim.emulation.certification.table import Call, OperationRow


def propagated(
    call: Call, slopes: Sequence[Slope | None], signed_part: torch.Tensor | None, rest: torch.Tensor | None
) -> torch.Tensor:
    """What the operands' differences make of the result: through bounds where only those are known, else as found."""
    assert call.result is not None
    shape = call.result.shape
    parts = [] if signed_part is None else [signed_part.abs().expand(shape)]
    if rest is not None:
        parts.append(rest.expand(shape))
    for slope, operand in zip(slopes, call.operands, strict=True):
        if slope is not None and not operand.known:
            assert operand.error is not None
            parts.append(slope.bound(operand.error).expand(shape))
    if len(parts) < 2:
        return parts[0] if parts else torch.zeros_like(call.result)
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    return raised(total)


def signed(
    call: Call, row: OperationRow, slopes: Sequence[Slope | None]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The part of the result's difference that is due to operands whose two values are known, and what is left of it."""
    signed_part, rest = (None, None) if row.known is None else row.known(call)
    for slope, operand in zip(slopes, call.operands, strict=True):
        if slope is None or not operand.known or operand.value is operand.reference:
            continue
        change = operand.difference()
        if bool(change.any()):
            middle, more = slope.known(change)
            more = more.expand(middle.shape)
            if signed_part is None:
                signed_part, rest = middle, more
            else:
                signed_part, more = signed_part + middle, more if rest is None else rest + more
                rest = raised(more + 4 * EPSILON * signed_part.abs())
    return signed_part, rest


def inherited(call: Call, error: torch.Tensor) -> torch.Tensor:
    """No error where an infinity was there before (a mask of -inf), in the emulated and in the exact model alike."""
    value = call.emulated if call.emulated is not None else call.result
    assert value is not None
    if not value.numel() or max(-float(value.min()), float(value.max())) < math.inf:
        return error
    infinite = torch.isinf(value)
    same = [
        torch.where(torch.isinf(item.value) & (item.value == item.reference), item.value, 0.0)
        if item.error is None else torch.zeros_like(item.value)
        for item in call.operands
    ]  # fmt: skip
    return torch.where(infinite & (call.run(same) == value), 0.0, error)
