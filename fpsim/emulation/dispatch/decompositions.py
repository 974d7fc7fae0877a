"""Operations that are written as other operations, which then meet their own rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._library.custom_ops import OPDEFS

#: Namespaces of torch's own operations that are Python functions of other operations.
_WRITTEN_IN_PYTHON = ("torch_nn",)


#: Its operations that take functions, and that are Python functions of other operations on a CPU.
_OF_FUNCTIONS = ("flex_attention",)


def _chosen(condition: Any, if_true: Callable[..., Any], if_false: Callable[..., Any], operands: Any = ()) -> Any:
    """What `torch.cond` is where it is not recorded."""
    return (if_true if condition else if_false)(*operands)


def decomposition_of(op: Any) -> Callable[..., Any] | None:
    """The function that computes this operation by others; None for an operation that has none."""
    if isinstance(op, torch._ops.HigherOrderOperator):
        if op.name() == "cond":
            return _chosen
        return op.py_kernels.get(torch._C.DispatchKey.CompositeExplicitAutograd) if op.name() in _OF_FUNCTIONS else None
    if op.namespace in _WRITTEN_IN_PYTHON and op.name() in OPDEFS:
        return OPDEFS[op.name()]._init_fn
    if torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"):
        return op.decompose
    return None
