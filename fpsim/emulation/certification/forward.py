"""From the inputs to the logits: values and bounds, step by step, by the one table.

A pass says what it starts from, what values it follows and what each operation adds; `walk` does the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from fpsim.emulation.certification.costs import Costs, LocalError
from fpsim.emulation.certification.propagation import inherited, propagated, signed
from fpsim.emulation.certification.slopes import Operand, Slope, has_nan, raised
from fpsim.emulation.certification.steps import RecordedStep, Ref, Trace
from fpsim.emulation.certification.table import Call, OperationRow, row_of
from fpsim.emulation.schemas import mapped, tensors_in


@dataclass(frozen=True)
class Plain:
    """A tensor of integers or booleans; `depends` says that it was computed from inexact numbers."""

    value: torch.Tensor
    depends: bool


@dataclass(frozen=True)
class Link:
    """One operation, for the way back: its call and slopes, what it adds, and the known part of that."""

    call: Call
    slopes: Sequence[Slope | None]
    number: int
    local: LocalError | None = None
    signed_part: torch.Tensor | None = None
    rest: torch.Tensor | None = None


State = Operand | Plain | None
States = dict[int, State]


class Pass:
    """What `walk` asks for. `trace.values` are the emulated run's."""

    costs: Costs | None = None
    links: list[Link] | None = None

    def __init__(self, trace: Trace):
        self.trace = trace

    def recorded(self, number: int) -> torch.Tensor:
        return self.trace.double(number)

    def leaf(self, number: int) -> Operand:
        """What the run starts from: emulated and exact values known."""
        return Operand(self.recorded(number), self.trace.references[number], known=True)

    def visit(self, call: Call, row: OperationRow, number: int) -> Operand:
        """The state of one result."""
        call.result = self.value(call, number)
        slopes = row.slopes(call)
        signed_part, rest = signed(call, row, slopes)
        error = propagated(call, slopes, signed_part, rest)
        if (whole := self.rounded(call, row, number, error)) is not None:
            return self.made(self.value(call, number), whole, number)
        local = self.error(call, row, number, error)
        if local is not None:
            error = raised(error + local.total)
        if self.links is not None:
            self.links.append(Link(call, slopes, number, local, signed_part, rest))
        if has_nan(error):
            error = torch.where(error.isnan(), torch.inf, error)
        return self.made(self.value(call, number), inherited(call, error), number)

    def rounded(self, call: Call, row: OperationRow, number: int, before: torch.Tensor) -> torch.Tensor | None:
        """The whole error of an operation that rounds once, where there is a quick form of it."""
        return None

    def value(self, call: Call, number: int) -> torch.Tensor:
        raise NotImplementedError

    def error(self, call: Call, row: OperationRow, number: int, before: torch.Tensor) -> LocalError | None:
        """What the operation adds to an error of `before`."""
        raise NotImplementedError

    def made(self, value: torch.Tensor, error: torch.Tensor, number: int) -> Operand:
        return Operand(value, value, error, None, error)


def logits_of(source: Pass) -> Operand:
    """The output's state alone: every other one is dropped after its last use, and its memory used again."""
    trace = source.trace
    last = {ref.index: step for step in trace.steps for ref in tensors_in((step.args, step.kwargs), Ref)}
    last.pop(trace.output, None)
    ending: dict[RecordedStep, list[int]] = {}
    for number, step in last.items():
        ending.setdefault(step, []).append(number)
    state = walk(source, ending)[trace.output]
    assert isinstance(state, Operand)
    return state


def walk(source: Pass, ending: Mapping[RecordedStep, list[int]] = MappingProxyType({})) -> States:
    """Every tensor's state, in the order of the trace; those that end with a step are dropped after it."""
    trace = source.trace
    states: States = {number: source.leaf(number) for number in trace.references}
    states.update({number: Plain(trace.values[number], False) for number in trace.integers})
    for step in trace.steps:
        numbers = [number for number in step.outputs if number is not None]
        places = mapped(functools.partial(_operand, step, states), (step.args, step.kwargs), Ref)
        operands = tensors_in(places, Operand)
        if not operands:
            _without_numbers(source, step, states)
            continue
        if not any(trace.values[number].is_floating_point() for number in numbers):
            depends = not all(operand.known and bool((operand.value == operand.reference).all()) for operand in operands)
            if depends and not numbers:
                raise step.refuse("a number is read back into Python, where the exact model might take another path")
            states.update({number: Plain(trace.values[number], depends) for number in numbers})
            continue
        row = row_of(step)
        for index, number in enumerate(step.outputs):
            if number is None:
                continue
            if row.outputs is not None and index >= row.outputs:
                states[number] = None if trace.values[number].is_floating_point() else Plain(trace.values[number], True)
                continue
            call = Call(step, places, index)
            refs = tensors_in((step.args, step.kwargs), Ref)
            call.numbers = [ref.index for ref in refs if isinstance(states[ref.index], Operand)]
            if source.costs is not None:
                call.recorded = functools.partial(trace.double, number)
            moved = row.family == "structure" and row.known is None and all(operand.known for operand in operands)
            states[number] = _carried(call) if moved else source.visit(call, row, number)
        for number in ending.get(step, ()):
            states.pop(number, None)
    return states


def _operand(step: RecordedStep, states: States, ref: Ref) -> Any:
    state = states[ref.index]
    if state is None:
        raise step.refuse("an auxiliary result (saved statistics) is used")
    if isinstance(state, Operand):
        return state
    if state.depends:
        raise step.refuse("integers or conditions that depend on inexact numbers are used")
    return state.value


def _without_numbers(source: Pass, step: RecordedStep, states: States) -> None:
    """An operation on integers, or one that makes floating-point numbers of them: a constant."""
    for index, number in enumerate(step.outputs):
        if number is None:
            continue
        value = source.trace.values[number]
        if not value.is_floating_point():
            states[number] = Plain(value, False)
            continue
        args, kwargs = mapped(lambda ref: states[ref.index].value, (step.args, step.kwargs), Ref)  # type: ignore[union-attr]
        result = step.op(*args, **kwargs)
        exact = (result[index] if isinstance(result, (tuple, list)) else result).double()
        source.trace.references.setdefault(number, exact)
        states[number] = source.leaf(number)


def _carried(call: Call) -> Operand:
    """Known numbers in other places: both sides are moved."""
    reference = call.run_on("reference")
    if all(operand.value is operand.reference for operand in call.operands):
        return Operand(reference, reference, known=True)
    return Operand(call.run_on("value"), reference, known=True)
