"""What broke first: the first time that something of a kind happened in a place, explained, with the chain behind it."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch

from fpsim.emulation.machine import marks
from fpsim.emulation.machine.updates import Update
from fpsim.emulation.observers.call import Call
from fpsim.emulation.observers.conversion import Conversion
from fpsim.emulation.observers.explanation import Element, element_of, overflow_of, sentence
from fpsim.emulation.observers.float64 import is_pole
from fpsim.emulation.observers.lines import Lines
from fpsim.emulation.observers.masks import makes_mask, reads_mask
from fpsim.emulation.observers.moves import Moves
from fpsim.emulation.observers.observer import Observer, observer_named
from fpsim.emulation.observers.origins import Origin, Origins, by_weight, chain_to
from fpsim.emulation.observers.owners import owner_of, path_of_owner
from fpsim.emulation.observers.source import Line, place_of, running_line
from fpsim.emulation.observers.standing import Standing
from fpsim.emulation.observers.tensors import is_finite
from fpsim.emulation.observers.timeline import Timeline
from fpsim.emulation.report import Draft, Key
from fpsim.report.records import Event

_GIVEN = ("constant", "random", "comparison")  # families whose zeros are asked for
_number = operator.itemgetter(0)
_NOWHERE = torch.zeros((), dtype=torch.bool)
_FEW = 32  # additions that say nothing about a share


@observer_named("events")
class Events(Timeline, Observer):
    """The kinds of `report.records.EVENTS`, the first of each in each module, operation and pass.

    share : from which share of the additions of a sum on it counts as swamped
    on_nonfinite : "raise" (`NonFinite`) or "warn" at the first number that is not finite and was not asked for; None goes on
    most : how many events are kept
    """

    keeps_operands = looks_for_swamping = is_before_writing = True

    def __init__(self, share: float = 0.25, on_nonfinite: str | None = None, most: int = 1000):
        if on_nonfinite not in (None, "raise", "warn"):
            raise ValueError(f'on_nonfinite is "raise", "warn" or None, got {on_nonfinite!r}')
        super().__init__(on_nonfinite, most)
        self.share = share
        self.reset()

    def reset(self) -> None:
        self.events: dict[tuple[str, ...], Event] = {}
        self.standing = Standing()
        self._lines, self._origins = Lines(), Origins()
        self._moves = Moves(self, self._origins)
        self._places: dict[Key, Line | None] = {}

    # What is told

    def before(self, call: Call) -> None:
        self._moves.before(call)

    def after(self, call: Call) -> None:
        if call.is_composed:
            return
        results, line = call.emulated, self._lines.of(call)
        overflows, underflows = call.overflows_and_underflows
        if overflows and reads_mask(call):
            overflows = 0
        elif overflows:
            self._judge_reading(call, line)
        if not results:
            if self._is_swamped(call) and call.results:  # sparse: entries of one place were added
                self._tell_swamped(call, marks.stored(call.results[0]), Origin(call, line, ()))
            return
        if call.phase == "optimizer":
            self._moves.judge_fused(call, line)
        finite = []
        for tensor in results:
            seen = call.magnitudes_of(tensor)
            parents, terms = self._origins.parents_of(call, tensor), self._origins.terms_of(call, tensor)
            origin = Origin(call, line, parents, terms)
            origin.nonfinite, origin.underflows, origin.largest = seen.infinite + seen.nan, underflows, seen.largest
            if origin.nonfinite:
                self._judge_nonfinite(call, tensor, origin, overflows)
            elif overflows:
                finite.append((tensor, origin))
            if seen.zeros == tensor.numel() > 0 and call.family not in _GIVEN:
                self._judge_zeros(call, tensor, origin)
            self._origins.keep(tensor, origin)
            self._moves.judge_gradient(call, tensor, line)
            system = call.system_of(tensor)
            origin.roundoff = system.enclosing.unit_roundoff
            self._places.setdefault((call.module_of(tensor), call.name, call.phase, system.name), line)
        if finite:
            self._judge_finite(call, finite, len(finite) == len(results))
        if self._is_swamped(call):
            is_finite_sum = not any(call.magnitudes_of(item).nonfinite for item in results)
            if is_finite_sum and not self._is_kept("swamped", call, results[0]):
                self._judge_sums(call)
        if call.family == "normalization" and call.phase == "forward":
            self._judge_statistics(call)

    def after_conversion(self, conversion: Conversion) -> None:
        name, index, system = conversion.parameter, conversion.index, conversion.system
        operands = ((f"{name}[{', '.join(map(str, index))}]", conversion.exact),)
        element = Element(index, operands, conversion.exact, conversion.rounded)
        said = f"{conversion.count} of {conversion.elements} elements of {name}, when the model was rounded"
        self.note(
            (conversion.kind, name, "run", "forward"), (0, conversion.module, "run", "forward"), running_line(), element,
            system.name, conversion.count, conversion.elements, f"{said}; {sentence(element, system)}",
            not math.isfinite(conversion.rounded),
        )  # fmt: skip

    def after_update(self, update: Update) -> None:
        self._moves.after_update(update)

    def after_skip(self, step: int) -> None:
        self.skip(step)

    def after_step(self, step: int) -> None:
        self._lines.age()
        self._moves.after_step()

    def contribute(self, draft: Draft) -> None:
        draft.observed.append("events")
        draft.events += self.told
        for key, line in self._places.items():
            draft.add(key, place=place_of(line))

    # What it means

    def _judge_reading(self, call: Call, line: Line | None) -> None:
        """Operands from outside that overflowed when they were read."""
        key = _key("overflow", call, call.module)
        for name, given, read in call.outside:
            if not self.is_kept(key):
                system = call.system_of(given)
                element, count = overflow_of(name, given, read, system)
                said = f"{count} of {given.numel()} elements of {name}, which came from outside, when it was read"
                if count:
                    self.note(
                        key, (call.step, call.module, call.name, call.phase), line, element, system.name,
                        count, given.numel(), f"{said}; {sentence(element, system)}", not math.isfinite(element.rounded or 0.0),
                    )  # fmt: skip

    def _judge_nonfinite(self, call: Call, tensor: torch.Tensor, origin: Origin, overflows: int) -> None:
        """Made here, of finite operands or of infinities that were asked for, or else passed on."""
        numbers = [value for value in (*call.args, *call.kwargs.values()) if type(value) is float]
        bad = [item for item in (*call.operands, *map(torch.tensor, numbers)) if not is_finite(item)]
        causes = [parent.cause for parent in by_weight(origin.parents) if parent.cause is not None]
        exact, is_nan = self._exact_of(call, tensor), call.magnitudes_of(tensor).nan > 0
        overflowed = ~tensor.isfinite() if exact is None else ~tensor.isfinite() & exact.isfinite()
        if bool(overflowed.any()) and (overflows or exact is not None):
            origin.cause = origin
            self._add("overflow", call, tensor, origin, overflowed, holds=makes_mask(call, tensor))
            self._is_held(origin, call, tensor, is_nan)
        elif causes and bad:
            origin.cause = causes[0]
            if not self._is_held(origin.cause, call, tensor, is_nan):
                self._add("passed-on", call, tensor, origin, ~tensor.isfinite())
        elif overflows or not bad or (is_nan and not any(bool(item.isnan().any()) for item in bad)):
            origin.cause = origin  # with overflows: of an operand from outside, when it was read
            is_exact = not overflows and not is_nan and exact is not None
            holds = is_exact and is_pole(call, tensor)  # log(0) may be for nobody to use
            kind = "overflow" if overflows or (is_exact and not holds) else "nonfinite"
            is_made = tensor.isnan() if bad and is_nan else ~tensor.isfinite()  # infinities came in
            self._add(kind, call, tensor, origin, is_made, holds=holds)
            self._is_held(origin, call, tensor, is_nan)
        elif (is_nan or bool((tensor == torch.inf).any())) and call.family != "constant":
            self._add("passed-on", call, tensor, origin, ~tensor.isfinite())  # from outside; -inf alone is a mask

    def _is_held(self, cause: Origin, call: Call, tensor: torch.Tensor, is_nan: bool) -> bool:
        """Whether a cause is told of later, if ever: so far it has led to no NaN, and to no loss, gradient or parameter."""
        if cause.held is not None and (is_nan or not tensor.dim() or call.phase != "forward"):
            held, cause.held = cause.held, None
            self.note(*held)
        return cause.held is not None

    def _judge_finite(self, call: Call, results: list[tuple[torch.Tensor, Origin]], are_all: bool) -> None:
        """Something overflowed, and these results are finite: they saturated, or what overflowed is no result."""
        for tensor, origin in results:
            if self._is_kept("overflow", call, tensor):
                return
            system, exact = call.system_of(tensor), self._exact_of(call, tensor)
            is_lost = (tensor == system.max_finite) | (tensor == system.min_finite)
            if exact is not None:
                is_lost &= (exact > system.max_finite) | (exact < system.min_finite)
            if bool(is_lost.any()):
                self._add("overflow", call, tensor, origin, is_lost)
                return
        if are_all:
            self._add("overflow", call, *results[0], _NOWHERE, "inside, which no result shows")

    def _judge_zeros(self, call: Call, tensor: torch.Tensor, origin: Origin) -> None:
        kind = {"forward": "underflow", "backward": "zero-gradient"}.get(call.phase)
        kind = "loss-underflow" if kind and not tensor.dim() else kind
        if kind is None or self._is_kept(kind, call, tensor):
            return
        exact = self._exact_of(call, tensor)
        if exact is not None and bool((exact != 0).any()):
            self._add(kind, call, tensor, origin, exact != 0)

    def _is_swamped(self, call: Call) -> bool:
        sums = call.sums
        return sums is not None and sums.additions >= _FEW and sums.swamped >= self.share * sums.additions

    def _judge_sums(self, call: Call) -> None:
        """Of several results, such as a convolution's gradients, that which errs most is explained."""
        found = []
        for tensor in call.emulated:
            exact = self._exact_of(call, tensor)
            if exact is None or not tensor.numel():
                found.append((0.0, tensor, torch.ones_like(tensor, dtype=torch.bool)))
            else:
                error = (tensor - exact).abs().nan_to_num(0.0)
                share = float(error.max() / exact.abs().nan_to_num(0.0).max().clamp(min=torch.finfo(torch.float64).tiny))
                found.append((share, tensor, error == error.max()))
        _, tensor, is_lost = max(found, key=_number)
        self._tell_swamped(call, tensor, self._origins.of(tensor), is_lost)

    def _tell_swamped(self, call: Call, tensor: torch.Tensor, origin: Origin | None, is_lost: torch.Tensor = _NOWHERE) -> None:
        sums: Any = call.sums
        text = f"{sums.swamped} of {sums.additions} additions inside left a sum as it was"
        self._add("swamped", call, tensor, origin, is_lost, text, sums.swamped, sums.additions)

    def _judge_statistics(self, call: Call) -> None:
        key = _key("stale-statistic", call, call.module)
        stands = moves = False
        for tensor in call.written:
            if tensor.is_floating_point() and tensor.numel():
                if not torch.equal(call.as_read(tensor), tensor):
                    moves = True
                    continue
                exact = self._exact_of(call, tensor)
                if exact is not None and bool((exact != tensor).any()):
                    stands = True
                    self._add(key[0], call, tensor, Origin(call, running_line(), ()), exact != tensor)
        if stands:
            self.standing.stand(key, key)
        elif moves:
            self.standing.move(key)

    @staticmethod
    def _exact_of(call: Call, tensor: torch.Tensor) -> torch.Tensor | None:
        exact = call.exact()
        if exact is None:
            return None
        return next(wide for result, wide in zip(call.results, exact, strict=True) if result is tensor)

    # What is kept

    def _is_kept(self, kind: str, call: Call, tensor: torch.Tensor) -> bool:
        return self.is_kept(_key(kind, call, path_of_owner(call, tensor)))

    def _add(
        self, kind: str, call: Call, tensor: torch.Tensor, origin: Origin | None, where: torch.Tensor, text: str = "",
        count: int = 0, elements: int = 0, holds: bool = False,
    ) -> None:  # fmt: skip
        owner = owner_of(call, tensor)
        key = _key(kind, call, owner.module)
        if self.is_kept(key):
            return
        places = where.reshape(-1).nonzero()
        element, fmt = Element(), call.system_of(tensor)
        if places.numel():
            element = element_of(call, tensor, self._exact_of(call, tensor), int(places[0]))
        line = origin.line if origin is not None else running_line()
        share = f"{text or f'{places.numel()} of {tensor.numel()} elements'}{owner.name}"
        event = (
            key, (call.step, owner.module, call.name, call.phase), line, element, fmt.name, count or places.numel(),
            elements or tensor.numel(), f"{share}; {sentence(element, fmt)}" if places.numel() else share,
            call.magnitudes_of(tensor).nonfinite > 0, chain_to(origin) if origin is not None else (),
        )  # fmt: skip
        if origin is not None and holds:
            origin.held = event
        else:
            self.note(*event)


def _key(kind: str, call: Call, module: str) -> tuple[str, ...]:
    return (kind, module) if kind == "passed-on" else (kind, module, call.name, call.phase)
