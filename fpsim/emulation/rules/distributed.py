"""Collective operations of `torch.distributed`: a reduction gathers, then sums in the order that was asked for.

The sum of a library's all-reduce takes place where no mode sees it, in an order of its own. What is only moved is moved
as it is, and rounded by whoever computes with it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor

from fpsim.emulation.machine import marks
from fpsim.emulation.machine.all_reduce import Parts
from fpsim.emulation.machine.engine import reduction, reduction_in_parts
from fpsim.emulation.machine.limits import SMALL
from fpsim.emulation.machine.native import NativeMachine
from fpsim.emulation.machine.protocol import Machine, MaybeTensor
from fpsim.emulation.registry import Rule, register
from fpsim.emulation.rules.matmul import is_native
from fpsim.emulation.schemas import names
from fpsim.numbers.formats import Format

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


class _Reduction:
    """A reduction over the ranks of a group on one machine: sums and means in the order asked for, and extremes."""

    def __init__(self, machine: Machine, group: Any, how: Any, timeout: int):
        self.machine, self.group, self.timeout = machine, group, timeout
        self.ranks, self.rank = (getattr(torch.distributed.ProcessGroup.unbox(group), name)() for name in ("size", "rank"))
        kinds: Any = torch.distributed.ReduceOp.RedOpType
        self.kind, self.kinds = kinds(how.op()), kinds
        self.how = machine.all_reduce

    def emulates(self, tensors: list[Tensor]) -> bool:
        """Whether any of them is rounded, or added in an order of its own. Raises UnsupportedOp for other reductions."""
        own = (*SMALL, *(() if self.how.is_of_the_accumulator else (torch.float32,)))
        found = any(item.dtype in (own if isinstance(self.machine, NativeMachine) else (torch.float32,)) for item in tensors)
        if found and self.kind not in (self.kinds.SUM, self.kinds.AVG, self.kinds.MAX, self.kinds.MIN):
            raise self.machine.refuse("a reduction over ranks that is neither a sum, a mean, a maximum nor a minimum")
        return found

    def of(self, tensor: Tensor, parts: Parts, some: slice = slice(None)) -> Tensor:
        """Of some elements of every rank's tensor, in one line; `parts` are the sums that they have."""
        machine = self.machine
        if isinstance(machine, NativeMachine):
            machine.choose(tensor.dtype)
        read = machine.operand(tensor) if machine.emulates(torch.float32) else tensor
        terms = torch.stack([item.reshape(-1)[some] for item in _gather(read, self.group, self.timeout)]).float()
        if self.kind in (self.kinds.MAX, self.kinds.MIN):
            return machine.exact(terms.amax(0) if self.kind == self.kinds.MAX else terms.amin(0))
        mean = self.kind == self.kinds.AVG
        if not self.how.is_of_the_accumulator:
            return self._in_parts(terms, mean, parts)
        if is_native(machine):
            return machine.finish(terms.mean(0) if mean else terms.sum(0))
        return machine.exact(torch.from_numpy(reduction(machine, terms.numpy(), (0,), mean)))

    def _in_parts(self, terms: Tensor, mean: bool, parts: Parts) -> Tensor:
        """Sums by trees of ranks; of a mean every term is divided before, by a factor that is a value of the format."""
        machine, fmt = self.machine, self.machine.arithmetic.fmt
        held = self.how.format or fmt
        if not isinstance(held, Format):
            raise machine.refuse(f"sums over ranks in {fmt.name}: say what they are in, as in all_reduce='{self.how}:fp32'")
        if mean:
            factor = machine.finish(torch.tensor([1 / self.ranks], dtype=torch.float64))
            terms = machine.finish(terms.double() * factor.double())
        return machine.exact(torch.from_numpy(reduction_in_parts(machine, terms.numpy(), held, parts)))

    def write(self, target: Tensor, total: Tensor) -> None:
        total = total.reshape(target.shape)
        if self.machine.emulates(torch.float32):
            self.machine.write(target, total)
        else:
            target.copy_(total)  # exact


def all_reduce(
    machine: Machine, tensors: list[Tensor], group: Any, how: Any, sparse: MaybeTensor = None, later: bool = True,
    timeout: int = -1,
) -> Any:  # fmt: skip
    """What all ranks get. Sums and means are made as `all_reduce` says; in the library's order they are its own, rounded."""
    reduce = _Reduction(machine, group, how, timeout)
    if not reduce.emulates(tensors):
        return torch.ops.c10d.allreduce_.default(tensors, group, how, sparse, later, timeout)
    for tensor in tensors:
        reduce.write(tensor, reduce.of(tensor, reduce.how.parts(reduce.ranks, tensor.numel())))
    return tensors, _finished(tensors)


def all_reduce_coalesced(
    machine: Machine, tensors: list[Tensor], group: Any, how: Any, later: bool = True, timeout: int = -1
) -> Any:
    return all_reduce(machine, tensors, group, how, None, later, timeout)[1]


def reduce_to_one(
    machine: Machine, tensors: list[Tensor], group: Any, how: Any, root: int, place: int, later: bool = True, timeout: int = -1
) -> Any:
    """What one rank gets; the others' tensors stay as they are."""
    reduce = _Reduction(machine, group, how, timeout)
    if not reduce.emulates(tensors):
        return torch.ops.c10d.reduce_.default(tensors, group, how, root, place, later, timeout)
    for tensor in tensors:
        total = reduce.of(tensor, [(slice(None), reduce.how.ending_at(reduce.ranks, root))])
        if reduce.rank == root:
            reduce.write(tensor, total)
    return _finished(tensors)


def _scatter(machine: Machine, outputs: list[Tensor], inputs: list[Tensor], group: Any, how: Any, timeout: int) -> bool:
    """Every rank its part of the reduction of each input; False where there is nothing to emulate."""
    reduce = _Reduction(machine, group, how, timeout)
    if not reduce.emulates(outputs):
        return False
    for output, whole in zip(outputs, inputs, strict=True):
        own = slice(reduce.rank * output.numel(), (reduce.rank + 1) * output.numel())
        if whole.numel() != reduce.ranks * output.numel():
            sizes = f"an input of {whole.numel()} elements for {reduce.ranks} outputs of {output.numel()}"
            raise RuntimeError(machine.message(sizes))
        reduce.write(output, reduce.of(whole, [(slice(None), reduce.how.ending_at(reduce.ranks, reduce.rank))], own))
    return True


def reduce_scatter(
    machine: Machine, outputs: list[Tensor], inputs: list[list[Tensor]], group: Any, how: Any, later: bool = True,
    timeout: int = -1,
) -> Any:  # fmt: skip
    wholes = [torch.cat([item.reshape(-1) for item in row]) for row in inputs]
    if not _scatter(machine, outputs, wholes, group, how, timeout):
        return torch.ops.c10d.reduce_scatter_.default(outputs, inputs, group, how, later, timeout)
    return outputs, _finished(outputs)


def reduce_scatter_base(
    machine: Machine, output: Tensor, whole: Tensor, group: Any, how: Any, later: bool = True, timeout: int = -1
) -> Any:
    if not _scatter(machine, [output], [whole], group, how, timeout):
        return torch.ops.c10d._reduce_scatter_base_.default(output, whole, group, how, later, timeout)
    return output, _finished([output])


def reduce_scatter_coalesced(
    machine: Machine, outputs: list[Tensor], inputs: list[Tensor], group: Any, how: Any, later: bool = True, timeout: int = -1
) -> Any:
    if not _scatter(machine, outputs, inputs, group, how, timeout):
        return torch.ops.c10d.reduce_scatter_tensor_coalesced_.default(outputs, inputs, group, how, later, timeout)
    return _finished(outputs)


REDUCTIONS: dict[str, Rule] = {
    "allreduce_": all_reduce,
    "allreduce_coalesced_": all_reduce_coalesced,
    "reduce_": reduce_to_one,
    "reduce_scatter_": reduce_scatter,
    "_reduce_scatter_base_": reduce_scatter_base,
    "reduce_scatter_tensor_coalesced_": reduce_scatter_coalesced,
}

if torch.distributed.is_available():
    for _name, _rule in (*REDUCTIONS.items(), *((_name, None) for _name in MOVEMENTS)):
        _op = getattr(torch.ops.c10d, _name).default
        register(_op, family="collective")(_movement_rule(_op) if _rule is None else _rule)
