"""Matrix products: every element through the accumulator, an addend in its format, one rounding to the model's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsim.accumulation.kinds import NATIVE
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.engine import product, products
from fpsim.emulation.machine.protocol import Machine, MaybeTensor
from fpsim.emulation.registry import Rule, register_functional
from fpsim.emulation.rules.sparse_products import sparse_product
from fpsim.emulation.schemas import name_of
from fpsim.sums.task import Sum

_FLOAT32 = torch.float32
_FLOAT32_ALONE = frozenset((_FLOAT32,))


def by_library(op: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Any:
    """The operation as torch has it, with its fast paths on."""
    torch._C._set_mkldnn_enabled(True)
    try:
        return op(*args, **kwargs)
    finally:
        torch._C._set_mkldnn_enabled(False)


def native(machine: Machine, op: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Tensor:
    """The library's own order, then one rounding."""
    return machine.finish(by_library(op, *machine.operands(args), **kwargs))


def is_native(machine: Machine) -> bool:
    """Whether sums are left to the library."""
    return machine.arithmetic.policy.accumulator.kind is NATIVE


def multiplies_natively(machine: Machine) -> bool:
    """Whether products of matrices and convolutions are left to the library."""
    return machine.arithmetic.product_task.accumulator.kind is NATIVE


def native_product(machine: Machine, op: torch._ops.OpOverload, *args: Tensor, **factors: float) -> Tensor:
    """A product in the library's own order, then one rounding; the last two arguments are multiplied."""
    *addends, a, b = args
    operands = (*machine.operands(addends), machine.factor(a), machine.factor(b))
    return machine.finish(by_library(op, *operands, **factors))


def _emulated(machine: Machine, *tensors: Tensor) -> bool:
    """Whether float32 operands make this an operation of the emulated format; all must be of one dtype then."""
    dtypes = {tensor.dtype for tensor in tensors}
    if dtypes == _FLOAT32_ALONE:
        return True
    if _FLOAT32 not in dtypes:
        for tensor in tensors:
            machine.check(tensor)
        return False
    raise machine.refuse(f"operands of different dtypes ({', '.join(sorted(map(str, dtypes)))})")


def _array(machine: Machine, tensor: Tensor) -> np.ndarray:
    return marks.array_of(machine.operand(tensor).detach())


def _factors(machine: Machine, a: Tensor, b: Tensor) -> tuple[Sum, np.ndarray, np.ndarray]:
    """Two operands as arrays, behind what the sum of their products is."""
    a, b = machine.factor(a), machine.factor(b)
    return machine.sum_of(a, b), marks.array_of(a.detach()), marks.array_of(b.detach())


def _shapes(machine: Machine, a: Tensor, b: Tensor, dims: int) -> None:
    left, right = a.shape, b.shape
    if len(left) != dims or len(right) != dims or left[-1] != right[-2] or (dims > 2 and left[:-2] != right[:-2]):
        raise RuntimeError(machine.message(f"shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be multiplied"))


def _matrices(machine: Machine, a: Tensor, b: Tensor, c: MaybeTensor = None, beta: float = 1, alpha: float = 1) -> np.ndarray:
    _shapes(machine, a, b, 2)
    addend = None if c is None or beta == 0 else _array(machine, c)
    task, left, right = _factors(machine, a, b)
    return product(machine, task, left, right, addend, alpha, beta)


def _batches(machine: Machine, a: Tensor, b: Tensor, c: MaybeTensor = None, beta: float = 1, alpha: float = 1) -> np.ndarray:
    _shapes(machine, a, b, 3)
    shape = (a.shape[0], a.shape[1], b.shape[2])
    addend = None if c is None or beta == 0 else np.broadcast_to(_array(machine, c), shape)
    task, left, right = _factors(machine, a, b)
    return products(machine, task, left, right, addend, alpha, beta)


def _sum_of_batches(machine: Machine, a: Tensor, b: Tensor, c: Tensor, beta: float = 1, alpha: float = 1) -> np.ndarray:
    """c + the sum of a batch of products: every element one chain over (batch, k)."""
    _shapes(machine, a, b, 3)
    addend = None if beta == 0 else _array(machine, c)
    task, left, right = _factors(machine, a, b)
    rows = left.swapaxes(0, 1).reshape(a.shape[1], -1)
    return product(machine, task, rows, right.reshape(-1, b.shape[2]), addend, alpha, beta)


def _column(machine: Machine, a: Tensor, b: Tensor, c: MaybeTensor = None, beta: float = 1, alpha: float = 1) -> np.ndarray:
    _shapes(machine, a, b.unsqueeze(1), 2)
    addend = None if c is None or beta == 0 else _array(machine, c.expand(a.shape[0]).unsqueeze(1))
    task, rows, values = _factors(machine, a, b)
    return product(machine, task, rows, values[:, None], addend, alpha, beta)[:, 0].copy()


def _number(machine: Machine, a: Tensor, b: Tensor) -> np.ndarray:
    if a.dim() != 1 or a.shape != b.shape:
        raise RuntimeError(machine.message(f"shapes {tuple(a.shape)} and {tuple(b.shape)} have no dot product"))
    task, row, column = _factors(machine, a, b)
    return product(machine, task, row[None], column[:, None]).reshape(())


_PRODUCTS: dict[str, Callable[..., np.ndarray]] = {
    "mm": _matrices, "addmm": _matrices, "bmm": _batches, "baddbmm": _batches, "addbmm": _sum_of_batches,
    "mv": _column, "addmv": _column, "dot": _number, "vdot": _number,
}


def _rule_for(op: torch._ops.OpOverload) -> Rule | None:
    if any(argument.name == "out_dtype" for argument in op._schema.arguments):
        return None
    compute = _PRODUCTS[name_of(op)]

    def rule(machine: Machine, *tensors: Tensor, **factors: float) -> Tensor:
        """`tensors` end with the two that are multiplied; `factors` are alpha and beta."""
        if tensors[-1].layout is not torch.strided or tensors[-2].layout is not torch.strided:
            return sparse_product(machine, name_of(op), *tensors, **factors)
        if not _emulated(machine, *tensors):
            return op(*tensors, **factors)
        if multiplies_natively(machine):
            return native_product(machine, op, *tensors, **factors)
        *addends, a, b = tensors
        return machine.exact(torch.from_numpy(compute(machine, a, b, *addends, **factors)))

    return rule


register_functional(_PRODUCTS, "matmul", _rule_for)
