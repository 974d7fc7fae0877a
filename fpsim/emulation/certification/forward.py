"""From the inputs to the logits: values and bounds, step by step, by the one table.

A pass says what it starts from, what values it follows and what each operation adds; `walk` does the rest. There are four:

    Library   a float64 (or float32) run, and a bound on its own error
    Running   the emulated run's values, and a bound on |emulated - exact| beside them
    Box       every input in a box: values of the middle, ranges of the exact model, bounds for every emulated run
    Shadow    what the emulated and the float64 run say of each other (`adjoint.py`)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from fpsim.emulation.certification.adding import Weights, added_up
from fpsim.emulation.certification.costs import Costs, LocalError
from fpsim.emulation.certification.long_products import long_product_error
from fpsim.emulation.certification.norms import slope_norm
from fpsim.emulation.certification.propagation import inherited, propagated, signed
from fpsim.emulation.certification.slopes import EPSILON, Operand, Slope, has_nan, raised, upwards
from fpsim.emulation.certification.steps import RecordedStep, Ref, Trace
from fpsim.emulation.certification.table import DOUBLE, INSIDE, TABLE, Call, LibraryArithmetic, OperationRow, Products, row_of
from fpsim.emulation.machine.policy import Policy
from fpsim.emulation.schemas import mapped, tensors_in
from fpsim.theory.roundings import rounding_bound


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


_NOTHING = torch.zeros(1, dtype=torch.float64)

#: Products and convolutions from which on norms are kept beside bounds of elements.
_DEEP = 6


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


class Library(Pass):
    """The model in a library's arithmetic, from the exact weights and inputs."""

    def __init__(self, trace: Trace, unit: LibraryArithmetic = DOUBLE, box: dict[int, torch.Tensor] | None = None):
        super().__init__(trace)
        self.unit, self.box = unit, box or {}
        rows = [TABLE[step.op] for step in trace.steps if step.op in TABLE]
        self.norms = not self.box and sum(row.products is not None for row in rows) >= _DEEP

    def leaf(self, number: int) -> Operand:
        reference = self.trace.references[number]
        if number in self.box:
            return Operand(reference, reference, self.box[number], None, self.box[number])
        return Operand(reference, reference, known=True)

    def visit(self, call: Call, row: OperationRow, number: int) -> Operand:
        """As everywhere; in deep networks no error exceeds the Euclidean norm of all, which grows with spectral norms."""
        state = super().visit(call, row, number)
        if not self.norms or state.error is None:
            return state
        slopes = row.slopes(call)
        norm = 0.0
        for slope, operand in zip(slopes, call.operands, strict=True):
            if slope is not None and operand.norm > 0:
                norm += slope_norm(slope, operand.value.shape) * operand.norm
        local = self.error(call, row, number, state.error)
        if local is not None:
            norm += float(torch.linalg.vector_norm(upwards(local.total)))
        signed_part, rest = signed(call, row, slopes)
        norm += sum(float(torch.linalg.vector_norm(part)) for part in (signed_part, rest) if part is not None)
        norm *= 1 + (state.value.numel() + 64) * EPSILON
        norm = norm if math.isfinite(norm) else math.inf
        error = state.error.clamp(max=norm)
        norm = min(norm, float(torch.linalg.vector_norm(error)) * (1 + (error.numel() + 64) * EPSILON))
        return Operand(state.value, state.reference, error, None, error, norm=norm)

    def value(self, call: Call, number: int) -> torch.Tensor:
        if call.result is not None:
            return call.result
        return call.run([operand.value.to(self.unit.dtype) for operand in call.operands]).double()

    def error(self, call: Call, row: OperationRow, number: int, before: torch.Tensor) -> LocalError | None:
        return _whole(row.cost(call, self.unit))


class Running(Pass):
    """The emulated run: its values are known, the exact ones are not."""

    def __init__(self, trace: Trace, policy: Policy):
        super().__init__(trace)
        self.costs = Costs(policy, run=True, quick=True)

    def visit(self, call: Call, row: OperationRow, number: int) -> Operand:
        """As everywhere; where numbers only move, bounds move with them."""
        if row.products is not None and self.links is None:
            bound = self._long_product(call, row.products(call), number)
            if bound is not None:
                return bound
        operand = call.operands[0]
        if row.family != "structure" or row.known is not None or len(call.operands) > 1 or operand.error is None:
            return super().visit(call, row, number)
        call.result = call.run([operand.value])
        if self.links is not None:
            self.links.append(Link(call, row.slopes(call), number))
        return self.made(call.result, call.run([operand.error]), number)

    def rounded(self, call: Call, row: OperationRow, number: int, before: torch.Tensor) -> torch.Tensor | None:
        assert self.costs is not None
        if row.kind != "rounded" or self.links is not None or not self.costs.visible or not before.numel():
            return None
        if row.arithmetic is not None:
            return None
        parts = (None, None, before, row.cost(call, INSIDE))
        store = self.costs.store(None)
        weights = Weights(local=1.0, inner=1.0, result=store.share, least=store.least, constant=store.constant)
        return added_up(self.trace.values[number], parts, _NOTHING, weights, self.costs.policy.fmt)

    def _long_product(self, call: Call, sums: Products, number: int) -> Operand | None:
        assert self.costs is not None
        values = self.trace.values
        singles = {id(operand): values[place] for place, operand in zip(call.numbers, call.operands, strict=True)}
        error = long_product_error(self.costs, call, sums, singles, values[number])
        return None if error is None else self.made(self.value(call, number), error, number)

    def value(self, call: Call, number: int) -> torch.Tensor:
        assert call.emulated is not None
        return call.emulated

    def error(self, call: Call, row: OperationRow, number: int, before: torch.Tensor) -> LocalError | None:
        assert self.costs is not None
        return self.costs.parts(call, row)


class Box(Pass):
    """Every run whose input lies in the box, emulated or (given a `unit`) a library's: `ranges` are a `Library` pass."""

    def __init__(
        self, trace: Trace, policy: Policy, ranges: States, box: dict[int, torch.Tensor],
        unit: LibraryArithmetic | None = None,
    ):  # fmt: skip
        super().__init__(trace)
        self.ranges, self.box, self.unit = ranges, box, unit
        self.costs = Costs(policy, run=False) if unit is None else None
        self.store = rounding_bound(policy.fmt, policy.rounding)

    def leaf(self, number: int) -> Operand:
        center = self.trace.references[number]
        if number not in self.box:
            return super().leaf(number) if self.unit is None else Operand(center, center, known=True)
        if self.unit is not None:
            return self.made(center, torch.zeros_like(center), number)
        magnitude = upwards(center.abs() + self.box[number])
        error = torch.where(
            magnitude <= self.store.largest, upwards(magnitude * self.store.relative) + self.store.absolute, torch.inf
        )
        return self.made(center, error, number)

    def value(self, call: Call, number: int) -> torch.Tensor:
        return self._range(number).value

    def error(self, call: Call, row: OperationRow, number: int, before: torch.Tensor) -> LocalError | None:
        call.result = upwards(self._range(number).reference_magnitude + before)
        if self.unit is not None:
            return _whole(row.cost(call, self.unit))
        assert self.costs is not None
        return self.costs.parts(call, row)

    def made(self, value: torch.Tensor, error: torch.Tensor, number: int) -> Operand:
        radius = self._range(number).radius
        if radius is None:
            radius = torch.zeros_like(error)
        return Operand(value, value, radius, upwards(radius + error), error)

    def _range(self, number: int) -> Operand:
        operand = self.ranges[number]
        assert isinstance(operand, Operand)
        return operand


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


def _whole(error: torch.Tensor | None) -> LocalError | None:
    return None if error is None else LocalError(error, error, error * 0)
