"""Matrix products: every element through the accumulator, an addend in its format, one rounding to the model's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsim.accumulation.kinds import NATIVE
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.engine import product, products
from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import RULES, Rule, register_functional
from fpsim.sums.task import Sum

_FLOAT32 = torch.float32


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
    given = (*machine.operands(addends), machine.factor(a), machine.factor(b))
    return machine.finish(by_library(op, *given, **factors))


def _emulated(machine: Machine, *tensors: Tensor) -> bool:
    """Whether float32 operands make this an operation of the emulated format; all must be of one dtype then."""
    dtypes = {tensor.dtype for tensor in tensors}
    if _FLOAT32 not in dtypes:
        for tensor in tensors:
            machine.check(tensor)
        return False
    if len(dtypes) > 1:
        raise machine.refuse(f"operands of different dtypes ({', '.join(sorted(map(str, dtypes)))})")
    return True


def _array(machine: Machine, tensor: Tensor) -> np.ndarray:
    return marks.array_of(machine.operand(tensor).detach())


def _factors(machine: Machine, a: Tensor, b: Tensor) -> tuple[Sum, np.ndarray, np.ndarray]:
    """Two operands as arrays, behind what the sum of their products is."""
    a, b = machine.factor(a), machine.factor(b)
    return machine.sum_of(a, b), marks.array_of(a.detach()), marks.array_of(b.detach())


def _result(machine: Machine, values: np.ndarray) -> Tensor:
    return machine.exact(torch.from_numpy(values))


def _shapes(machine: Machine, a: Tensor, b: Tensor, dims: int) -> None:
    if a.dim() != dims or b.dim() != dims or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise RuntimeError(machine.message(f"shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be multiplied"))


def _rule_for(op: torch._ops.OpOverload) -> Rule | None:
    name = op._schema.name.split("::")[1]
    if any(argument.name == "out_dtype" for argument in op._schema.arguments):
        return None

    def mm(machine: Machine, a: Tensor, b: Tensor) -> Tensor:
        if not _emulated(machine, a, b):
            return op(a, b)
        if multiplies_natively(machine):
            return native_product(machine, op, a, b)
        _shapes(machine, a, b, 2)
        task, left, right = _factors(machine, a, b)
        return _result(machine, product(machine, task, left, right))

    def addmm(machine: Machine, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        if not _emulated(machine, c, a, b):
            return op(c, a, b, beta=beta, alpha=alpha)
        if multiplies_natively(machine):
            return native_product(machine, op, c, a, b, beta=beta, alpha=alpha)
        _shapes(machine, a, b, 2)
        addend = None if beta == 0 else _array(machine, c)
        task, left, right = _factors(machine, a, b)
        return _result(machine, product(machine, task, left, right, addend, alpha, beta))

    def bmm(machine: Machine, a: Tensor, b: Tensor) -> Tensor:
        if not _emulated(machine, a, b):
            return op(a, b)
        if multiplies_natively(machine):
            return native_product(machine, op, a, b)
        _shapes(machine, a, b, 3)
        task, left, right = _factors(machine, a, b)
        return _result(machine, products(machine, task, left, right))

    def baddbmm(machine: Machine, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        if not _emulated(machine, c, a, b):
            return op(c, a, b, beta=beta, alpha=alpha)
        if multiplies_natively(machine):
            return native_product(machine, op, c, a, b, beta=beta, alpha=alpha)
        _shapes(machine, a, b, 3)
        shape = (a.shape[0], a.shape[1], b.shape[2])
        addend = None if beta == 0 else np.broadcast_to(_array(machine, c), shape)
        task, left, right = _factors(machine, a, b)
        return _result(machine, products(machine, task, left, right, addend, alpha, beta))

    def addbmm(machine: Machine, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        """c + the sum of a batch of products: every element one chain over (batch, k)."""
        if not _emulated(machine, c, a, b):
            return op(c, a, b, beta=beta, alpha=alpha)
        if multiplies_natively(machine):
            return native_product(machine, op, c, a, b, beta=beta, alpha=alpha)
        _shapes(machine, a, b, 3)
        addend = None if beta == 0 else _array(machine, c)
        task, left, right = _factors(machine, a, b)
        rows = left.swapaxes(0, 1).reshape(a.shape[1], -1)
        return _result(machine, product(machine, task, rows, right.reshape(-1, b.shape[2]), addend, alpha, beta))

    def mv(machine: Machine, a: Tensor, b: Tensor) -> Tensor:
        if not _emulated(machine, a, b):
            return op(a, b)
        if multiplies_natively(machine):
            return native_product(machine, op, a, b)
        return mm(machine, a, b.unsqueeze(1)).squeeze(1)

    def dot(machine: Machine, a: Tensor, b: Tensor) -> Tensor:
        if not _emulated(machine, a, b):
            return op(a, b)
        if multiplies_natively(machine):
            return native_product(machine, op, a, b)
        if a.dim() != 1 or a.shape != b.shape:
            raise RuntimeError(machine.message(f"shapes {tuple(a.shape)} and {tuple(b.shape)} have no dot product"))
        task, row, column = _factors(machine, a, b)
        return _result(machine, product(machine, task, row[None], column[:, None])).reshape(())

    def addmv(machine: Machine, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        if not _emulated(machine, c, a, b):
            return op(c, a, b, beta=beta, alpha=alpha)
        if multiplies_natively(machine):
            return native_product(machine, op, c, a, b, beta=beta, alpha=alpha)
        column = c.expand(a.shape[0]).unsqueeze(1)
        addend = None if beta == 0 else _array(machine, column)
        task, rows, values = _factors(machine, a, b)
        return _result(machine, product(machine, task, rows, values[:, None], addend, alpha, beta)[:, 0].copy())

    rules: dict[str, Rule] = {
        "mm": mm,
        "addmm": addmm,
        "bmm": bmm,
        "baddbmm": baddbmm,
        "addbmm": addbmm,
        "mv": mv,
        "dot": dot,
        "vdot": dot,
        "addmv": addmv,
    }
    return rules[name]


register_functional("mm addmm bmm baddbmm addbmm mv dot vdot addmv", "matmul", _rule_for)

addmm_rule = RULES[torch.ops.aten.addmm.default]
