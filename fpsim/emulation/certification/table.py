"""The one table of certification: what an operation does to differences, and what computing it once costs.

A row has `slopes(call)`, one `Slope` (or None) for each operand, and `cost(call, unit)`, a bound on the error of computing
the operation once from its operands in a library whose operations have the unit roundoff `unit.roundoff`. Whether the
emulation rounds the result, accumulates it or passes it on is the row's kind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fpsim.emulation.certification.slopes import EPSILON, Operand, Slope, upwards
from fpsim.emulation.certification.steps import RecordedStep
from fpsim.emulation.errors import UnsupportedOp
from fpsim.emulation.machine.policy import Policy
from fpsim.emulation.schemas import mapped, tensors_in
from fpsim.numbers.formats import Format

_Multiply = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Kind = Literal["exact", "rounded", "accumulated"]


@dataclass(frozen=True)
class LibraryArithmetic:
    """A library's arithmetic: roundoff, the loss of an underflow, and how many units in the last place a function may err.

    `scalar` is the arithmetic of operations in which a Python number takes part.
    """

    name: str
    dtype: torch.dtype
    roundoff: float
    underflow: float
    ulps: int = 8
    scalar: LibraryArithmetic | None = None

    @property
    def with_scalar(self) -> LibraryArithmetic:
        return self.scalar or self


DOUBLE = LibraryArithmetic("float64", torch.float64, 2.0**-53, 2.0**-1074)
SINGLE = LibraryArithmetic("float32", torch.float32, 2.0**-24, 2.0**-149)
#: What emulation computes with before it rounds: float64, or fp32 where a Python number takes part.
INSIDE = LibraryArithmetic("float64", torch.float64, 2.0**-53, 2.0**-1074, scalar=SINGLE)


class Call:
    """One step with an `Operand` in the place of each floating-point tensor.

    `result` is what it gave in the arithmetic under study, `emulated` what the recorded run has, by `recorded` (None where no
    emulated run is under study); both in float64. `numbers` are those of the operands in the trace.
    """

    def __init__(self, step: RecordedStep, places: tuple[Any, Any], index: int = 0):
        self.step, self.index = step, index
        self.numbers: list[int] = []
        self.args, self.kwargs = places
        self.operands: list[Operand] = tensors_in(places, Operand)
        self.result: torch.Tensor | None = None
        self.recorded: Callable[[], torch.Tensor] | None = None
        self._read: Any = None

    @functools.cached_property
    def emulated(self) -> torch.Tensor | None:
        return None if self.recorded is None else self.recorded()

    def once(self, read: Callable[[Call], Any]) -> Any:
        """What `read` makes of the call, which slopes and cost share."""
        if self._read is None:
            self._read = read(self)
        return self._read

    def run(self, tensors: Sequence[Any]) -> Any:
        """The operation itself on these tensors in the operands' places; its result of number `index`."""
        queue = iter(tensors)
        args, kwargs = mapped(lambda _: next(queue), (self.args, self.kwargs), Operand)
        result = self.step.op(*args, **kwargs)
        return result[self.index] if isinstance(result, (tuple, list)) else result

    def run_on(self, which: str) -> Any:
        """The operation on one attribute of every operand."""
        return self.run([getattr(operand, which) for operand in self.operands])

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def refuse(self, reason: str) -> UnsupportedOp:
        return self.step.refuse(reason)


@dataclass(frozen=True)
class Products:
    """A matrix product, convolution or sum as the accumulator sees it.

    multiply    (a, b) -> their product without the addend, for any two tensors in the factors' places
    factors     the two operands
    terms       how many products a result adds
    addend      what the epilogue adds to the accumulator, or None; `spread_addend` makes it broadcast to the result
    matrices    (a, b) -> matrices, or stacks of as many, whose products are the result in row-major order; None where it has
                no such form
    norm        b -> an upper bound of the spectral norm of a -> multiply(a, b), where there is a good one
    reach       (a, b) -> above the largest |a| and the sum of the |b| of every result, broadcasting to its shape, or None
    divisor     what the sum is divided by afterwards: the number of terms of a mean
    single      as `multiply`, quicker, for float32 tensors; sums in any order, but of products as they are
    """

    multiply: _Multiply
    factors: tuple[Operand, Operand]
    terms: int
    addend: Operand | None = None
    spread_addend: Callable[[torch.Tensor], torch.Tensor] = lambda t: t
    divisor: int = 1
    matrices: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    norm: Callable[[torch.Tensor], float] | None = None
    reach: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    single: _Multiply | None = None

    def magnitudes(self, above: Callable[[Products, torch.Tensor, torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
        """Above the sum of the magnitudes of all terms, the addend's included; `above(self, a, b)` bounds their product."""
        a, b = (factor.magnitude for factor in self.factors)
        total = upwards(self.multiply(a, b), self.terms) if above is None else above(self, a, b)
        return total if self.addend is None else upwards(total + self.spread_addend(self.addend.magnitude))


@dataclass(frozen=True)
class OperationRow:
    """One operation, torch's or a step of one. `outputs` says how many of its results mean anything here (None: all).

    `arithmetic` makes of the machine's policy that of the operation, of operands in its format, and the format that the result
    is rounded to. Left out, operands and result are of the policy's.
    """

    op: Callable[..., Any]
    family: str
    kind: Kind
    slopes: Callable[[Call], Sequence[Slope | None]]
    cost: Callable[[Call, LibraryArithmetic], torch.Tensor | None]
    products: Callable[[Call], Products] | None = None
    outputs: int | None = 1
    known: Callable[[Call], tuple[torch.Tensor | None, torch.Tensor | None]] | None = None
    arithmetic: Callable[[Call, Policy], tuple[Policy, Format]] | None = None


TABLE: dict[Callable[..., Any], OperationRow] = {}


def free(call: Call, unit: LibraryArithmetic) -> None:
    """The cost of what makes no new numbers."""
    return None


def rounded(call: Call, unit: LibraryArithmetic) -> torch.Tensor:
    """The cost of one correctly rounded operation."""
    assert call.result is not None
    return call.result.abs() * (2 * unit.roundoff) + unit.underflow


def multiplied(call: Call, unit: LibraryArithmetic) -> torch.Tensor:
    """The cost of a sum of products in any order of summation: ((1 + u)^(n + 2) - 1) of the sum of magnitudes."""
    products = TABLE[call.step.op].products
    assert products is not None
    sums = products(call)
    total = sums.magnitudes()
    steps = sums.terms + 3
    if steps * unit.roundoff >= 0.5:
        raise call.refuse(f"a sum of {sums.terms} terms is too long for bounds in {unit.name}")
    growth = steps * unit.roundoff / (1 - steps * unit.roundoff)
    return (total * (growth * (1 + 16 * EPSILON)) + steps * unit.underflow) / sums.divisor + unit.underflow


def register(
    op: Callable[..., Any],
    family: str,
    slopes: Callable[[Call], Sequence[Slope | None]],
    *,
    kind: Kind = "rounded",
    cost: Callable[[Call, LibraryArithmetic], torch.Tensor | None] = rounded,
    **rest: Any,
) -> None:
    """Add a row. Raises ValueError if the operation has one."""
    if op in TABLE:
        raise ValueError(f"{op} already has a row (family {TABLE[op].family!r})")
    TABLE[op] = OperationRow(op, family, kind, slopes, cost, **rest)


def row_of(step: RecordedStep) -> OperationRow:
    """The operation's row.

    Raises
    ------
    UnsupportedOp : there is none; the message names the operation and the module.
    """
    row = TABLE.get(step.op)
    if row is None:
        raise step.refuse(
            "certification has no rule for this operation; one can be added with fpsim.emulation.certification.register"
        )
    return row
