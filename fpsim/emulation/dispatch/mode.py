"""The dispatch mode: below autograd, every operation of a thread is looked up in the table, or raises."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch._C._dynamo import eval_frame
from torch.utils._python_dispatch import TorchDispatchMode

from fpsim.emulation.dispatch.decompositions import decomposition_of
from fpsim.emulation.dispatch.holding import CHANGED, HELD, OTHERS, look
from fpsim.emulation.dispatch.subclasses import are_taken_apart, instead_of
from fpsim.emulation.errors import BeingTraced, MetaTensor, SparseTensor, UnsupportedOp, stop_recording
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.changes import KINDS
from fpsim.emulation.machine.limits import has_others
from fpsim.emulation.machine.machine import FormatMachine
from fpsim.emulation.machine.protocol import Rule
from fpsim.emulation.registry import SHORT, SPARSE, Short, arrived

_modes_left = torch._C._len_torch_dispatch_stack  # type: ignore[attr-defined]
_without_dispatch = torch._C._DisableTorchDispatch  # type: ignore[attr-defined]

#: Namespaces whose operations compute nothing.
_BOOKKEEPING = ("profiler", "prim")


class Rules(Protocol):
    """Where a mode looks rules up."""

    def get(self, op: Any, /) -> Rule | None: ...


class EmulationMode(TorchDispatchMode):
    """One thread's mode while it is inside an emulating context."""

    supports_higher_order_operators = True

    def __init__(self, machine: FormatMachine):
        super().__init__()
        self.machine = machine
        self.rules: Rules = machine.rules
        self.short = SHORT if machine.has_one_format else {}
        machine.stepping = self

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch's wrapper costs 3 microseconds an operation; the strategy below does its work for nothing

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if types and are_taken_apart(types):
            return NotImplemented
        try:
            machine, number = self.machine, id(func)
            short, found = self.short.get(number), OTHERS
            if short is not None and not types and _modes_left() == 0:
                found = look(args, machine.arithmetic.tag)
                if found == HELD and not machine.updates_parameters:
                    machine.op = func
                    result = short(machine, *args, **kwargs) if kwargs else short(machine, *args)
                    if result is not None:
                        machine.results.note(result)
                        return result
            kind = KINDS.get(number)
            kwargs = {} if kwargs is None else kwargs
            short = None if found == OTHERS else short
            if kind is not None and (found == CHANGED or (found == OTHERS and kind.concerns(args, kwargs))):
                changes = machine.updates.before(kind, args, kwargs)
                if changes:
                    return machine.updates.observe(func, kind, changes, self.update, (func, types, args, kwargs, short))
            if machine.updates_parameters:
                return self.update(func, types, args, kwargs, short)
            result = self.dispatch(func, types, args, kwargs)
            machine.results.note(result)
            return result
        except UnsupportedOp as error:
            self._explain(error, func, args, kwargs or {})
            raise

    def update(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any], short: Short | None) -> Any:
        """The result of an operation of an optimizer's step, or of one that changes a parameter: its operands' module's."""
        machine = self.machine
        machine.op = func
        owner = machine.owner = marks.module_of(args)
        result = None if short is None else short(machine, *args, **kwargs)
        if result is None:
            result = self.dispatch(func, types, args, kwargs)
        if owner is not None and isinstance(result, torch.Tensor):
            marks.set_module(result, owner)
        machine.results.note(result)
        return result

    def dispatch(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The operation's result."""
        rule = self.rules.get(func)
        if rule is None and arrived(func):
            rule = self.rules.get(func)
        if rule is None:
            return self._without_rule(func, args, kwargs)
        if types and not marks.PLAIN_TYPES.issuperset(types):
            self._refuse_subclasses(func, types)
        machine = self.machine
        machine.op = func
        try:  # where a dtype below float32, or complex numbers, have a part, it is no rule's alone
            if machine.others is not None and (has_others(args) or (kwargs and has_others(kwargs.values()))):
                return machine.others.compute(self, func, types, args, kwargs)
            if _modes_left() == 0:  # nothing below to hide from
                return rule(machine, *args, **kwargs) if kwargs else rule(machine, *args)
            stop_recording(func)
            with _without_dispatch():
                return rule(machine, *args, **kwargs)
        except MetaTensor:
            return func(*args, **kwargs)  # shapes only
        except SparseTensor as error:
            return self._with_sparse(error, func, args, kwargs)

    def _with_sparse(self, error: SparseTensor, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What a rule makes that takes sparse operands, where one for dense ones has refused them."""
        rule = SPARSE.get(func)
        if rule is None:
            raise error
        with _without_dispatch():
            return rule(self.machine, *args, **kwargs)

    def _explain(self, error: UnsupportedOp, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        values = [_describe(value) for value in args] + [f"{key}={_describe(value)}" for key, value in kwargs.items()]
        error.complete_with(func, ", ".join(values), self.machine.path)

    def _without_rule(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Operations made of others (composite ones arrive whole under `inference_mode`) are taken apart; the rest raise."""
        if getattr(func, "namespace", "") in _BOOKKEEPING:
            return func(*args, **kwargs)
        decomposition = decomposition_of(func)
        if decomposition is not None:
            with self:
                result = decomposition(*args, **kwargs)
            if result is not NotImplemented:
                return result
        self.machine.op = func
        if "_amp_" in str(func):
            raise self.machine.refuse('loss scaling is for fmt="native", where 16-bit tensors mean themselves')
        raise UnsupportedOp(f"{func} has no rule, so emulation under {self.machine.arithmetic.policy} cannot run it")

    def _refuse_subclasses(self, func: Any, types: Any) -> None:
        kinds = sorted({kind.__name__ for kind in types})
        if "FakeTensor" in kinds:
            raise BeingTraced(func)
        raise UnsupportedOp(
            f"{func}: operands are tensor subclasses ({', '.join(kinds)}), which have no rules: "
            f"compute with {instead_of(kinds)}"
        )


def run_as_written(function: Any) -> None:
    """Keep torch.compile from tracing this function and all that it calls."""
    skip = eval_frame._FrameAction.SKIP
    eval_frame.set_code_exec_strategy(function.__code__, eval_frame._FrameExecStrategy(skip, skip))


run_as_written(EmulationMode.__torch_dispatch__)


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        shape = "[nested]" if value.is_nested else list(value.shape)
        return f"{str(value.dtype).removeprefix('torch.')}{shape}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_describe(item) for item in value[:4])}{', ...' if len(value) > 4 else ''}]"
    return repr(value)[:60]
