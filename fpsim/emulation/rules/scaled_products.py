"""Products of float8 matrices with scales, as `torch._scaled_mm` and `torch.nn.functional.scaled_mm` have them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fpsim.accumulation.kinds import NATIVE, UNIT
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.engine import accumulated_products, rounded
from fpsim.emulation.machine.protocol import Machine, MaybeDtype, MaybeTensor
from fpsim.emulation.registry import register
from fpsim.emulation.rules.matmul import by_library
from fpsim.numbers.formats import FP32
from fpsim.numbers.operations import odd_sum
from fpsim.sums.task import Sum

_aten = torch.ops.aten
_PROMOTED = 128  # terms that a unit adds before its sum goes to an fp32 register outside of it
_BY_TENSOR, _BY_ROW = 0, 1  # torch.nn.functional.ScalingType


def _scale(machine: Machine, scale: Tensor, shape: tuple[int, int]) -> np.ndarray:
    if scale.dtype is not torch.float32 or (scale.numel() != 1 and tuple(scale.shape) != shape):
        raise machine.refuse(
            f"scales {tuple(scale.shape)} of {scale.dtype}: on a CPU torch has float32 scales for a tensor or its rows; "
            "fpsim.hardware.scaled_product has those for blocks"
        )
    read = machine.operand(scale) if machine.emulates(scale.dtype) else scale
    values = marks.array_of(read.detach()).astype(np.float64)
    return values.reshape(1, 1) if scale.numel() == 1 else values


def _accumulated(machine: Machine, task: Sum, a: np.ndarray, b: np.ndarray, fast: bool) -> np.ndarray:
    """a @ b as the accumulator leaves it, in float64.

    A unit whose registers are narrower than fp32 adds everything in them only if `fast`; else every 128 terms, whose sums are
    chained in fp32.
    """
    unit = task.accumulator.unit
    if task.accumulator.kind is UNIT and unit is not None:
        try:
            row = unit.instruction((task.left.enclosing, task.right.enclosing), task.accumulator.format.name)
        except ValueError as error:
            raise machine.refuse(str(error)) from None
        is_narrow = row.outputs[task.accumulator.format.name].format != task.accumulator.format
        if is_narrow and not fast and a.shape[1] > _PROMOTED:
            parts = range(0, a.shape[1], _PROMOTED)
            total = np.zeros((a.shape[0], b.shape[1]))
            for begin in parts:
                part = slice(begin, begin + _PROMOTED)
                own = accumulated_products(machine, task, a[None, :, part], b[None, part])[0].astype(np.float64)
                total = rounded(machine, odd_sum(total, own, task.rounding), FP32)
            return total
    return accumulated_products(machine, task, a[None], b[None])[0].astype(np.float64)


@register(_aten._scaled_mm.default, family="scaled")
def scaled_mm(
    machine: Machine, a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: MaybeTensor = None,
    scale_result: MaybeTensor = None, out_dtype: MaybeDtype = None, use_fast_accum: bool = False,
) -> Tensor:  # fmt: skip
    """rnd(rnd(acc * scale_a) * scale_b) + bias, each step in the accumulator's format, then one rounding to the result's dtype.

    `scale_result` multiplies before that rounding. RuntimeError for shapes that do not meet.
    """
    dtype = out_dtype or a.dtype
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise RuntimeError(machine.message(f"shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be multiplied"))
    task = machine.sum_of_dtypes(a.dtype, b.dtype, dtype)
    scales = [_scale(machine, scale_a, (a.shape[0], 1)), _scale(machine, scale_b, (1, b.shape[1]))]
    if task.accumulator.kind is NATIVE:
        total = by_library(
            _aten._scaled_mm.default, a, b, scale_a, scale_b, None, None, torch.float32, use_fast_accum
        ).double().numpy()  # fmt: skip
        scales = []
    else:
        total = _accumulated(machine, task, a.float().numpy(), b.float().numpy(), use_fast_accum)
    inner = task.accumulator.promoted or task.target
    for scale in scales:
        total = rounded(machine, total * scale, inner)
    if bias is not None:
        addend = np.broadcast_to(bias.detach().double().numpy(), total.shape)
        total = rounded(machine, odd_sum(total, addend, task.rounding), inner)
    if scale_result is not None:
        total = rounded(machine, total * float(scale_result), inner)
    return machine.finish(torch.from_numpy(np.ascontiguousarray(total))).to(dtype)  # exact


@register(_aten._scaled_mm_v2.default, family="scaled")
def scaled_mm_v2(
    machine: Machine, a: Tensor, b: Tensor, scale_a: list[Tensor], recipe_a: list[int], swizzle_a: list[int],
    scale_b: list[Tensor], recipe_b: list[int], swizzle_b: list[int], bias: MaybeTensor, out_dtype: MaybeDtype,
    contraction_dim: tuple[int, ...] = (), use_fast_accum: bool = False,
) -> Tensor:  # fmt: skip
    """The same; scales for blocks raise, as torch has none on a CPU."""
    plain = [*recipe_a] == [*recipe_b] and len(recipe_a) == 1 and recipe_a[0] in (_BY_TENSOR, _BY_ROW)
    if not plain or any(swizzle_a) or any(swizzle_b):
        raise machine.refuse("scales for blocks, or swizzled ones; fpsim.hardware.scaled_product has blocks")
    return scaled_mm(machine, a, b, scale_a[0], scale_b[0], bias, None, out_dtype, use_fast_accum)
