"""Collective operations of `torch.distributed`: an all-reduce gathers, then sums in the order of the ranks.

The sum of a library's all-reduce takes place where no mode sees it, in an order of its own. What is only moved is moved
as it is, and rounded by whoever computes with it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor

from fpsim.emulation.machine import marks
from fpsim.emulation.machine.engine import reduction
from fpsim.emulation.machine.limits import SMALL
from fpsim.emulation.machine.native import NativeMachine
from fpsim.emulation.machine.protocol import Machine, MaybeTensor
from fpsim.emulation.registry import Rule, register
from fpsim.emulation.rules.matmul import is_native
from fpsim.emulation.schemas import names

MOVEMENTS = names(
    """
    broadcast_ allgather_ _allgather_base_ allgather_into_tensor_coalesced_ gather_ scatter_ alltoall_ alltoall_base_
    send recv_ recv_any_source_ barrier monitored_barrier_
    """
)


def _movement_rule(op: torch._ops.OpOverload) -> Rule:
    def move(machine: Machine, *args: Any, **kwargs: Any) -> Any:
        for tensor in torch.utils._pytree.tree_leaves(args):
            if isinstance(tensor, Tensor):
                marks.unmark(tensor)  # other numbers arrive, maybe later
        return op(*args, **kwargs)

    return move


def _gather(tensor: Tensor, group: Any, timeout: int) -> list[Tensor]:
    """The tensor of every rank, in the order of the ranks."""
    size = torch.distributed.ProcessGroup.unbox(group).size()
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(size)]
    _, work = torch.ops.c10d.allgather_.default([parts], [tensor.contiguous()], group, False, timeout)
    torch.distributed.Work.unbox(work).wait()
    return parts


def _finished(tensors: list[Tensor]) -> Any:
    """A piece of work that is done already, with this result."""
    future: torch.futures.Future[list[Tensor]] = torch.futures.Future()
    future.set_result(tensors)
    return torch._C._distributed_c10d._create_work_from_future(future).boxed()  # type: ignore[attr-defined]


def all_reduce(
    machine: Machine, tensors: list[Tensor], group: Any, how: Any, sparse: MaybeTensor = None, later: bool = True,
    timeout: int = -1,
) -> Any:  # fmt: skip
    """Sums and means in the accumulator, rank 0 first; in the library's order they are its own, rounded."""
    kinds: Any = torch.distributed.ReduceOp.RedOpType
    kind = kinds(how.op())
    native = isinstance(machine, NativeMachine)
    if not any(tensor.dtype in (SMALL if native else (torch.float32,)) for tensor in tensors):
        return torch.ops.c10d.allreduce_.default(tensors, group, how, sparse, later, timeout)
    if kind not in (kinds.SUM, kinds.AVG):
        raise machine.refuse("an all-reduce that is neither a sum nor a mean")
    for tensor in tensors:
        if isinstance(machine, NativeMachine):
            machine.choose(tensor.dtype)
        terms = torch.stack(_gather(tensor if native else machine.operand(tensor), group, timeout)).float()
        if is_native(machine):
            total = machine.finish(terms.sum(0) if kind == kinds.SUM else terms.mean(0))
        else:
            total = machine.exact(torch.from_numpy(reduction(machine, terms.numpy(), (0,), kind == kinds.AVG)))
        if native:
            tensor.copy_(total)  # exact
        else:
            machine.write(tensor, total)
    return tensors, _finished(tensors)


if torch.distributed.is_available():
    register(torch.ops.c10d.allreduce_.default, family="collective")(all_reduce)
    for _name in MOVEMENTS:
        _op = getattr(torch.ops.c10d, _name).default
        register(_op, family="collective")(_movement_rule(_op))
