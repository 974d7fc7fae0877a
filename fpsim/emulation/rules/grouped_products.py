"""Products of groups of rows, as layers of experts make them: each group's product is a matrix product of its own."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from fpsim.emulation.machine.protocol import Machine, MaybeDtype, MaybeTensor
from fpsim.emulation.registry import RULES, register

_aten = torch.ops.aten
_mm = RULES[_aten.mm.default]


def _bounds(machine: Machine, offsets: Tensor, groups: int | None, size: int) -> list[tuple[int, int]]:
    """Where each group begins and ends; checked, for torch's kernels trust what they are given."""
    if offsets.dtype is not torch.int32 or offsets.dim() != 1:
        raise RuntimeError(machine.message(f"offs is a vector of int32, not {tuple(offsets.shape)} of {offsets.dtype}"))
    ends = offsets.tolist()
    if groups is not None and len(ends) != groups:
        raise RuntimeError(machine.message(f"offs ends {len(ends)} groups, the operand has {groups} matrices"))
    if ends != sorted(ends) or (ends and not 0 <= ends[0] <= ends[-1] <= size):
        raise RuntimeError(machine.message(f"offs ascends within 0 ... {size}, not {ends}"))
    return list(pairwise([0, *ends]))


@register(_aten._grouped_mm.default, family="matmul")
def grouped_mm(
    machine: Machine, a: Tensor, b: Tensor, offs: MaybeTensor = None, bias: MaybeTensor = None, out_dtype: MaybeDtype = None
) -> Tensor:
    """One product a group; what no group has is 0. Groups of rows, of columns or of terms, as the operands' axes say.

    RuntimeError for shapes that do not meet, and offsets that descend or leave the operand, before anything is computed.
    """
    if bias is not None or out_dtype not in (None, a.dtype):
        raise machine.refuse("bias, or a result of another dtype, which torch does not have here either")
    ragged = a.dim() == 2 or b.dim() == 2
    if not {a.dim(), b.dim()} <= {2, 3} or ragged != (offs is not None):
        how = "without" if offs is None else "with"
        raise RuntimeError(machine.message(f"operands of {a.dim()} and {b.dim()} axes {how} offs"))
    if a.shape[-1] != b.shape[-2]:
        raise RuntimeError(machine.message(f"shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be multiplied"))
    if offs is None:
        return RULES[_aten.bmm.default](machine, a, b)
    rows, columns = a.shape[-2], b.shape[-1]
    if a.dim() == b.dim():  # groups of terms
        parts = [_mm(machine, a[:, i:j], b[i:j]) for i, j in _bounds(machine, offs, None, a.shape[1])]
        return _joined(machine, a, parts, 0, torch.Size((len(parts), rows, columns)))
    if a.dim() == 2:
        bounds = _bounds(machine, offs, b.shape[0], rows)
        parts = [_mm(machine, a[i:j], matrix) for (i, j), matrix in zip(bounds, b, strict=True)]
        return _joined(machine, a, parts, 0, torch.Size((rows, columns)))
    bounds = _bounds(machine, offs, a.shape[0], columns)
    parts = [_mm(machine, matrix, b[:, i:j]) for (i, j), matrix in zip(bounds, a, strict=True)]
    return _joined(machine, a, parts, 1, torch.Size((rows, columns)))


def _joined(machine: Machine, like: Tensor, parts: list[Tensor], axis: int, shape: torch.Size) -> Tensor:
    result = torch.zeros(shape, dtype=parts[0].dtype if parts else like.dtype)
    begin = 0
    for index, part in enumerate(parts):
        if len(shape) == 3:
            result[index] = part
        else:
            result.narrow(axis, begin, part.shape[axis]).copy_(part)
            begin += part.shape[axis]
    return machine.exact(result)
