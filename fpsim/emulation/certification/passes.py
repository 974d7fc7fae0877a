"""The passes from the inputs to the logits. There are four:

    Library   a float64 (or float32) run, and a bound on its own error
    Running   the emulated run's values, and a bound on |emulated - exact| beside them
    Box       every input in a box: values of the middle, ranges of the exact model, bounds for every emulated run
    Shadow    what the emulated and the float64 run say of each other (`adjoint.py`)
"""

from __future__ import annotations

import math

import torch

from fpsim.emulation.certification.adding import Weights, added_up
from fpsim.emulation.certification.costs import Costs, LocalError
from fpsim.emulation.certification.forward import Link, Pass, States
from fpsim.emulation.certification.long_products import long_product_error
from fpsim.emulation.certification.norms import slope_norm
from fpsim.emulation.certification.propagation import signed
from fpsim.emulation.certification.slopes import EPSILON, Operand, upwards
from fpsim.emulation.certification.steps import Trace
from fpsim.emulation.certification.table import DOUBLE, INSIDE, TABLE, Call, LibraryArithmetic, OperationRow, Products
from fpsim.emulation.machine.policy import Policy
from fpsim.theory.roundings import rounding_bound

_NOTHING = torch.zeros(1, dtype=torch.float64)

#: Products and convolutions from which on norms are kept beside bounds of elements.
_DEEP = 6


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


def _whole(error: torch.Tensor | None) -> LocalError | None:
    return None if error is None else LocalError(error, error, error * 0)
