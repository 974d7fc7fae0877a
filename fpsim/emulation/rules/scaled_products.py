"""Products of float8 matrices with scales, as `torch._scaled_mm` and `torch.nn.functional.scaled_mm` have them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fpsim.accumulation.kinds import NATIVE, UNIT
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.engine import accumulated_products, rounded
from fpsim.emulation.machine.limits import SMALL, instead_of
from fpsim.emulation.machine.protocol import Machine, MaybeDtype, MaybeTensor
from fpsim.emulation.registry import register_functional
from fpsim.emulation.rules.matmul import by_library
from fpsim.numbers.formats import FP32
from fpsim.numbers.operations import odd_sum
from fpsim.sums.task import Sum

_aten = torch.ops.aten
_BLOCK = 128  # terms, and rows, that share a scale
_PROMOTED = 128  # terms that a unit adds before its sum goes to an fp32 register outside of it
_BY_TENSOR, _BY_ROW, _BY_32, _BY_128, _BY_SQUARE = 0, 1, 3, 4, 5  # torch.nn.functional.ScalingType


@dataclass(frozen=True)
class _Scales:
    """Of a factor, (rows, blocks of terms): float64 values, each for `terms` terms (0: for all of them)."""

    values: np.ndarray
    terms: int

    def of(self, begin: int) -> np.ndarray:
        """Those of the block that begins at a term."""
        return self.values[:, begin // self.terms, None] if self.terms else self.values


def _scales(machine: Machine, scale: Tensor, rows: int, terms: int) -> _Scales:
    """Those of a (rows, terms) factor, by their shape: of the tensor, its rows, 128 terms of a row or of 128 rows; or in
    float8_e8m0fnu, of 32 terms of a row."""
    blocks = {size: -(-terms // size) for size in (32, _BLOCK)}
    if scale.dtype is getattr(torch, "float8_e8m0fnu", None) and tuple(scale.shape) == (rows, blocks[32]):
        return _Scales(scale.float().double().numpy(), 32)
    shapes: dict[tuple[int, ...], int] = {(height, blocks[_BLOCK]): _BLOCK for height in (rows, -(-rows // _BLOCK))}
    shapes[rows, 1] = shapes.get((rows, 1), 0)
    if scale.dtype is not torch.float32 or (scale.numel() != 1 and tuple(scale.shape) not in shapes):
        raise machine.refuse(
            f"scales {tuple(scale.shape)} of {scale.dtype} for {rows} rows of {terms} terms: known are float32 scales for a "
            "tensor, its rows, 1 x 128 and 128 x 128 blocks, and float8_e8m0fnu ones for 1 x 32, none of them swizzled; "
            "fpsim.hardware.scaled_product has those of a unit's own instructions"
        )
    read = machine.operand(scale) if machine.emulates(scale.dtype) else scale
    values = marks.array_of(read.detach()).astype(np.float64)
    if scale.numel() == 1:
        return _Scales(values.reshape(1, 1), 0)
    size = shapes[tuple(scale.shape)]
    return _Scales(values if len(values) == rows else np.repeat(values, _BLOCK, 0)[:rows], size)


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


def scaled_mm(
    machine: Machine, a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: MaybeTensor = None,
    scale_result: MaybeTensor = None, out_dtype: MaybeDtype = None, use_fast_accum: bool = False,
) -> Tensor:  # fmt: skip
    """rnd(rnd(acc * scale_a) * scale_b) + bias, each step in the accumulator's format, then one rounding to the result's dtype.

    With scales for blocks of terms that is done for each block, and what the blocks give is added in their order before the
    bias. `scale_result` multiplies before the last rounding. RuntimeError for shapes that do not meet.
    """
    dtype = out_dtype or a.dtype
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise RuntimeError(machine.message(f"shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be multiplied"))
    for dtype_of in (a.dtype, b.dtype):
        if dtype_of not in SMALL:
            raise machine.refuse(f"a factor of {dtype_of}, whose products torch has for GPUs alone; {instead_of(dtype_of)}")
        if dtype_of.itemsize > 1:
            raise machine.refuse(f"a factor of {dtype_of}, where float8 ones are multiplied: torch.mm takes it")
    if dtype not in SMALL and dtype is not torch.float32:
        raise machine.refuse(f"out_dtype {dtype}: float32, float16, bfloat16 and float8 dtypes are known")
    if bias is not None and tuple(bias.shape) != (b.shape[1],):
        raise RuntimeError(machine.message(f"bias must be of {b.shape[1]} elements, not of shape {tuple(bias.shape)}"))
    task = machine.sum_of_dtypes(a.dtype, b.dtype, dtype)
    turned = scale_b.t() if scale_b.dim() == 2 else scale_b
    left, right = _scales(machine, scale_a, *a.shape), _scales(machine, turned, *b.t().shape)
    inner, block = task.accumulator.promoted or task.target, min(filter(None, (left.terms, right.terms)), default=0)
    if block and task.accumulator.kind is NATIVE:
        raise machine.refuse('scales for blocks, which torch has no product for on a CPU: say what to accumulate in ("fp32")')
    if task.accumulator.kind is NATIVE:
        total = by_library(
            _aten._scaled_mm.default, a, b, scale_a, scale_b, None, None, torch.float32, use_fast_accum
        ).double().numpy()  # fmt: skip
    else:
        first, second, total = a.float().numpy(), b.float().numpy(), np.zeros((a.shape[0], b.shape[1]))
        for begin in range(0, a.shape[1], block) if block else (0,):
            part = slice(begin, begin + block) if block else slice(None)
            own = _accumulated(machine, task, first[:, part], second[part], use_fast_accum)
            for scale in (left.of(begin), right.of(begin).T):
                own = rounded(machine, own * scale, inner)
            total = rounded(machine, odd_sum(total, own, task.rounding), inner) if begin else own
    if bias is not None:
        addend = np.broadcast_to(bias.detach().double().numpy(), total.shape)
        total = rounded(machine, odd_sum(total, addend, task.rounding), inner)
    if scale_result is not None:
        total = rounded(machine, total * float(scale_result), inner)
    return machine.finish(torch.from_numpy(np.ascontiguousarray(total))).to(dtype)  # exact


def scaled_mm_v2(
    machine: Machine, a: Tensor, b: Tensor, scale_a: list[Tensor], recipe_a: list[int], swizzle_a: list[int],
    scale_b: list[Tensor], recipe_b: list[int], swizzle_b: list[int], bias: MaybeTensor, out_dtype: MaybeDtype,
    contraction_dim: tuple[int, ...] = (), use_fast_accum: bool = False,
) -> Tensor:  # fmt: skip
    """The same, with one scale tensor a factor; several levels of scales, swizzled ones and those of 16 terms raise."""
    known = (_BY_TENSOR, _BY_ROW, _BY_32, _BY_128, _BY_SQUARE)
    if any(len(recipe) != 1 or recipe[0] not in known for recipe in (recipe_a, recipe_b)) or any(swizzle_a) or any(swizzle_b):
        raise machine.refuse(
            "scales of two levels, of 16 terms, or swizzled; fpsim.hardware.scaled_product has those of a unit's instructions"
        )
    return scaled_mm(machine, a, b, scale_a[0], scale_b[0], bias, None, out_dtype, use_fast_accum)


register_functional("_scaled_mm", "scaled", lambda op: scaled_mm)
register_functional("_scaled_mm_v2", "scaled", lambda op: scaled_mm_v2)
