"""One operation, as observers are told of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from fpsim.backend.numba import counting
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.machine import FormatMachine
from fpsim.emulation.machine.rows import FORMATS_MET, Touched, counts_of
from fpsim.emulation.observers.float64 import compute_in_float64, is_widened
from fpsim.emulation.observers.tensors import Magnitudes, holds_emulated, is_finite, survey
from fpsim.emulation.schemas import tensors_in
from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding
from fpsim.numbers.system import NumberSystem
from fpsim.report.counts import Counts
from fpsim.sums.observers.counters import Counters

ON_LISTS = ("foreach", "optimizer")  # families that compute many results, each of its own operands

_UNKNOWN = object()
_NOTHING: dict[int, Any] = {}
_is_floating = torch.Tensor.is_floating_point


class Operation(NamedTuple):
    """One of torch's overloads: its name in reports, the family of its rule, (position, name) of the arguments it writes to."""

    overload: Any
    name: str
    family: str
    written: tuple[tuple[int, str], ...]


def _written(places: tuple[tuple[int, str], ...], args: Any, kwargs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """The tensors among the arguments at these places."""
    if len(places) == 1 and places[0][0] < len(args) and isinstance(args[places[0][0]], torch.Tensor):
        return (args[places[0][0]],)
    return tuple(tensors_in(args[i] if i < len(args) else kwargs.get(name) for i, name in places))


class Call:
    """An operation under emulation: what it is, where it runs, its operands and, once computed, its results.

    operation   torch's overload, such as `torch.ops.aten.addmm.default`
    args, kwargs   its arguments as they came; float32 operands from outside are read rounded (`operands`)
    result      what it returned; None before
    name        the operation's name in reports: `addmm`, `add_.Tensor`
    family      the family of its rule: "matmul", "elementwise", "exact" (moves numbers, rounds none), ...
    written     the arguments that it writes to
    outer       the operation that this one is a part of, if any
    is_composed   whether it was computed by others that were told of: then they rounded, not it
    module      the path of the module whose forward pass, whose part of the backward pass, or whose parameter's update it
                belongs to
    phase       the pass: "forward", "backward" or "optimizer" (an optimizer's step, and updates of parameters by hand)
    step        the training step: how many optimizers' steps have ended
    rounding    the rounding mode
    sums        what happened inside its products and sums, where an observer has `looks_into_sums` (or the additions alone,
                where one has `looks_for_swamping`); else None
    """

    __slots__ = (
        "_copies", "_emulated", "_exact", "_is_computed", "_machine", "_made", "_magnitudes", "_module", "_read", "_results",
        "args", "family", "is_composed", "kwargs", "name", "operation", "outer", "phase", "result", "step", "sums", "touched",
        "written",
    )  # fmt: skip

    def __init__(
        self, machine: FormatMachine, told: Operation, args: Any, kwargs: dict[str, Any], outer: Call | None,
        sums: Counters | None,
    ):  # fmt: skip
        self._machine = machine
        self.operation, self.name, self.family, written = told
        self.args, self.kwargs, self.outer, self.sums = args, kwargs, outer, sums
        self.result: Any = None
        self.is_composed = self._is_computed = False
        self.find_place()
        self.touched: Touched = {}
        self.step: int = machine.emulation.training_step
        self.written: tuple[torch.Tensor, ...] = _written(written, args, kwargs) if written else ()
        self._copies: dict[int, torch.Tensor] = _NOTHING
        self._read: dict[int, torch.Tensor] = _NOTHING
        self._magnitudes: dict[int, Magnitudes] = _NOTHING
        self._made: tuple[torch.Tensor, ...] | None = None
        self._results: tuple[torch.Tensor, ...] | None = None
        self._emulated: tuple[torch.Tensor, ...] | None = None
        self._exact: Any = _UNKNOWN

    def find_place(self) -> None:
        """Note where the machine is now."""
        self._module: str | None
        self._module, self.phase = self._machine.place_and_phase()
        if self.phase == "optimizer":  # of lists asked now: meanwhile elements may be said to be of modules of their own
            self._module = self._module_of_operands() if self.family in ON_LISTS else None

    def _module_of_operands(self) -> str:
        found = marks.module_of(self.args)
        return self._machine.path if found is None else found

    @property
    def module(self) -> str:
        if self._module is None:
            self._module = self._module_of_operands()
        return self._module

    def keep_operands(self) -> None:
        """Keep copies of what the operation is about to write to."""
        self._copies = {id(tensor): tensor.clone() for tensor in self.written}

    def complete(self, result: Any) -> None:
        """The operation returned this."""
        self.result, self._is_computed = result, True

    @property
    def rounding(self) -> Rounding:
        return self._machine.arithmetic.rounding

    @property
    def counts(self) -> Counts:
        """What rounding did to its results."""
        return sum((counts_of(saturates, row - before) for saturates, row, before in self.touched.values()), Counts())

    @property
    def overflows_and_underflows(self) -> tuple[int, int]:
        """Those of `counts`."""
        overflows = underflows = 0
        for _, row, before in self.touched.values():
            overflows += row.item(counting.OVERFLOWS) - before.item(counting.OVERFLOWS)
            underflows += row.item(counting.UNDERFLOWS) - before.item(counting.UNDERFLOWS)
        return overflows, underflows

    @property
    def made(self) -> tuple[torch.Tensor, ...]:
        """All tensors that it made or wrote to, each once; before it is computed those that it writes to."""
        if self._made is None:
            if not self._is_computed:
                return self.written
            if self._is_of_one:
                self._made = (self.result,) if self.result.is_cpu else ()
            else:
                found = {id(tensor): tensor for tensor in (*tensors_in((self.result,)), *self.written)}
                self._made = tuple(tensor for tensor in found.values() if tensor.is_cpu)
        return self._made

    @property
    def _is_of_one(self) -> bool:
        """Whether it made or wrote to one tensor alone, which it returned."""
        written = self.written
        return isinstance(self.result, torch.Tensor) and (not written or (len(written) == 1 and written[0] is self.result))

    @property
    def results(self) -> tuple[torch.Tensor, ...]:
        """The floating-point tensors that it made or wrote to, each once."""
        if self._results is None:
            made = self.made
            found = made if all(map(_is_floating, made)) else tuple(filter(_is_floating, made))
            if not self._is_computed:
                return found
            self._results = found
        return self._results

    @property
    def emulated(self) -> tuple[torch.Tensor, ...]:
        """Those of `results` that hold numbers of an emulated format: no float64, no step count, nothing that stays wide."""
        if self._emulated is None:
            if self._is_of_one:
                result = self.result
                is_one = result.is_cpu and result.is_floating_point() and holds_emulated(self._machine, result)
                self._emulated = (result,) if is_one else ()
                return self._emulated
            found = tuple(tensor for tensor in self.results if holds_emulated(self._machine, tensor))
            if not self._is_computed:
                return found
            self._emulated = found
        return self._emulated

    def magnitudes_of(self, result: torch.Tensor) -> Magnitudes:
        """The extremes of one of `results`, and how many of its elements are zeros, subnormal or not finite; looked at once."""
        found = self._magnitudes.get(id(result))
        if found is None:
            found = survey(result, self.format_of(result).min_normal)
            self._magnitudes = {**self._magnitudes, id(result): found}
        return found

    @property
    def is_of_finite(self) -> bool:
        """Whether all numbers that it read are finite, Python's among its arguments too."""
        numbers = (*self.args, *self.kwargs.values())
        return all(math.isfinite(value) for value in numbers if type(value) is float) and all(
            is_finite(tensor) for tensor in self.operands
        )

    @property
    def operands(self) -> tuple[torch.Tensor, ...]:
        """The floating-point tensors among its arguments, with the values that it read; of sparse ones what is stored."""
        found = tensors_in((*self.args, *self.kwargs.values()))
        return tuple(marks.stored(self.as_read(tensor)) for tensor in found if tensor.is_floating_point() and tensor.is_cpu)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All tensors among its arguments."""
        return tuple(tensors_in((*self.args, *self.kwargs.values())))

    def arguments_of(self, result: torch.Tensor) -> dict[str, Any]:
        """The arguments by name, in the order of the schema; of lists what stands beside a result that an element made."""
        schema = [argument.name for argument in self.operation._schema.arguments]
        named = {**dict(zip(schema, self.args, strict=False)), **self.kwargs}
        lists = [value for value in (*named.values(), self.result) if isinstance(value, (list, tuple))]
        places = [(len(items), i) for items in lists for i, item in enumerate(items) if item is result]
        if not places:
            return named
        count, place = places[0]

        def beside(value: Any) -> Any:
            return value[place] if isinstance(value, (list, tuple)) and len(value) == count else value

        return {name: beside(value) for name, value in named.items()}

    def as_written(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor that it writes to, as it was before and before it was read (`Observer.keeps_operands`)."""
        return self._copies.get(id(tensor), tensor)

    def as_read(self, tensor: torch.Tensor) -> torch.Tensor:
        """An operand with the values that the operation reads it as, written to or not (`Observer.keeps_operands`)."""
        return self._read.get(id(tensor), self._copies.get(id(tensor), tensor))

    @property
    def outside(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Its operands that came from outside: the argument's name, what came, and what was read."""
        if self._read:
            names = (argument.name for argument in self.operation._schema.arguments)
            for name, value in (*zip(names, self.args, strict=False), *self.kwargs.items()):
                for place, item in enumerate(value) if isinstance(value, (list, tuple)) else (("", value),):
                    if isinstance(item, torch.Tensor) and self.was_outside(item):
                        yield f"{name}[{place}]" if place != "" else name, item, self.as_read(item)

    def was_outside(self, tensor: torch.Tensor) -> bool:
        """Whether an operand came from outside and was rounded when it was read."""
        return id(tensor) in self._read

    def system_of(self, tensor: torch.Tensor) -> NumberSystem:
        """The number system whose values an operand or result holds."""
        system = self._machine.system_of(tensor)
        return FORMATS_MET.setdefault(system.name, system)

    def format_of(self, tensor: torch.Tensor) -> Format:
        """The float format whose values an operand or result holds: of another number system the one that encloses it."""
        enclosing: Format = self._machine.system_of(tensor).enclosing
        return enclosing

    def module_of(self, result: torch.Tensor) -> str:
        """The module that one of `results` belongs to: in an optimizer's step that of the parameter that it is of."""
        found = marks.module_of((result,)) if self.phase == "optimizer" else None
        return self.module if found is None else found

    def note_read(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """A tensor from outside was read rounded."""
        self._read = {**self._read, id(tensor): value}

    def exact(self) -> tuple[torch.Tensor, ...] | None:
        """The results before they were rounded: the operation in float64, which errs as float64 does, on the same operands.

        One for each of `results`. None where there is no such thing: random numbers, and what other processes send. An
        observer that asks for it says so by `keeps_operands`.
        """
        if self._exact is _UNKNOWN:
            self._exact = self.exactly()
        return self._exact

    def exactly(self, **others: Any) -> tuple[torch.Tensor, ...] | None:
        """The same with other keyword arguments in the place of its own."""
        exact = compute_in_float64(self, self._widened, self._machine.as_number, **others)
        if exact is None:
            return None
        return tuple(wide for tensor, wide in zip(self.made, exact, strict=True) if tensor.is_floating_point())

    def held(self, result: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """What one of `results` would hold of float64 numbers; nothing of it is counted."""
        return self._machine.would_hold(result, value.clone())

    def _widened(self, tensor: torch.Tensor) -> torch.Tensor:
        value = self.as_read(tensor)
        if is_widened(tensor):
            return value.double()
        return value.clone() if any(tensor is target for target in self.written) else value
