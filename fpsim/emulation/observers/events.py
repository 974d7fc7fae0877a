"""What broke first: the first time that something of a kind happened in a place, explained, with the chain behind it."""

from __future__ import annotations

import math

import torch

from fpsim.backend.numba import counting
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.rows import FORMATS_MET
from fpsim.emulation.machine.updates import Update
from fpsim.emulation.observers.call import Call
from fpsim.emulation.observers.conversion import Conversion
from fpsim.emulation.observers.explanation import Element, element_of, overflow_of, sentence
from fpsim.emulation.observers.lines import Lines
from fpsim.emulation.observers.observer import Observer, observer_named
from fpsim.emulation.observers.origins import Origin, Origins, chain_to
from fpsim.emulation.observers.source import Line, place_of, running_line
from fpsim.emulation.observers.tensors import is_finite
from fpsim.emulation.observers.timeline import Timeline
from fpsim.emulation.report import Draft, Key, name_of_operation
from fpsim.emulation.schemas import name_of, names
from fpsim.report.records import Event
from fpsim.sums.observers.tally import Tally

_GIVEN = ("constant", "random", "comparison")  # families whose zeros are asked for
_WITH_POLES = frozenset(names("log log2 log10 log1p xlogy logit reciprocal div rsqrt atanh"))  # exactly infinite there
_NEARLY_ALL = 0.95  # of the elements of a parameter
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
        super().__init__(on_nonfinite)
        self.share, self.most = share, most
        self.reset()

    def reset(self) -> None:
        self.events: dict[tuple[str, ...], Event] = {}
        self._lines, self._origins = Lines(), Origins()
        self._begun: dict[int, torch.Tensor] = {}  # parameters as they were before this step, by address
        self._places: dict[Key, Line | None] = {}
        self._step = 0

    # What is told

    def before(self, call: Call) -> None:
        self._step = call.step
        for tensor in call.written:
            if marks.is_parameter(tensor):
                self._begun.setdefault(tensor.data_ptr(), call.as_read(tensor))

    def after(self, call: Call) -> None:
        if call.is_composed:
            return
        results, line = call.emulated, self._lines.of(call)
        overflows, underflows = call.counted(counting.OVERFLOWS), call.counted(counting.UNDERFLOWS)
        if overflows and _reads_mask(call):
            overflows = 0
        elif overflows:
            self._judge_reading(call, line)
        if not results:
            return
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
            self._places.setdefault((call.module_of(tensor), call.name, call.phase, call.system_of(tensor).name), line)
        if finite:
            self._judge_finite(call, finite, len(finite) == len(results))
        sums = call.sums
        if sums is not None and sums.additions >= _FEW and sums.swamped >= self.share * sums.additions:
            self._judge_sums(call, results[0], sums)
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
        before = self._begun.pop(update.target.data_ptr(), None)
        if before is None or before.shape != update.target.shape or not update.updates:
            return
        stays = before == update.target.detach()
        kept = 0 if update.kept is None else int((stays & update.kept).sum())
        if update.lost - kept < _NEARLY_ALL * update.updates:  # whatever else was meant to change did
            return
        moved = stays.numel() - int(stays.sum())
        if moved <= (1 - _NEARLY_ALL) * update.updates:
            origin = None if update.target.grad is None else self._origins.of(update.target.grad)
            if origin is not None and origin.is_of_errors(FORMATS_MET[update.where.format].enclosing.unit_roundoff):
                return  # as of a bias before batch norm, whose gradient is exactly 0
            text = f"{{}} stays where it is: {moved} elements changed, and a step was meant to change {{}} of {{}}"
            self._add_update("stopped", update, stays, text)
        elif moved > update.updates // 2:
            text = "the decay of {} left no trace in {} of {} elements, though the step moved them"
            self._add_update("decay-lost", update, ~stays, text)

    def after_step(self, step: int) -> None:
        self._lines.age()
        self._begun.clear()

    def contribute(self, draft: Draft) -> None:
        draft.observed.append("events")
        draft.events += self.events.values()
        for key, line in self._places.items():
            draft.add(key, place=place_of(line))

    # What it means

    def _judge_reading(self, call: Call, line: Line | None) -> None:
        """Operands from outside that overflowed when they were read."""
        for name, given, read in call.outside:
            if not self._is_kept("overflow", call):
                system = call.system_of(given)
                element, count = overflow_of(name, given, read, system)
                said = f"{count} of {given.numel()} elements of {name}, which came from outside, when it was read"
                if count:
                    self.note(
                        _key("overflow", call), (call.step, call.module, call.name, call.phase), line, element, system.name,
                        count, given.numel(), f"{said}; {sentence(element, system)}", not math.isfinite(element.rounded or 0.0),
                    )  # fmt: skip

    def _judge_nonfinite(self, call: Call, tensor: torch.Tensor, origin: Origin, overflows: int) -> None:
        """Made here, of finite operands or of infinities that were asked for, or else passed on."""
        numbers = [value for value in (*call.args, *call.kwargs.values()) if type(value) is float]
        bad = [item for item in (*call.operands, *map(torch.tensor, numbers)) if not is_finite(item)]
        causes = [parent.cause for parent in origin.parents if parent.cause is not None]
        exact, is_nan = self._exact_of(call, tensor), call.magnitudes_of(tensor).nan > 0
        overflowed = ~tensor.isfinite() if exact is None else ~tensor.isfinite() & exact.isfinite()
        if bool(overflowed.any()) and (overflows or exact is not None):
            origin.cause = origin
            self._add("overflow", call, tensor, origin, overflowed)
        elif causes and bad:
            origin.cause = causes[0]
            if not self._is_held(origin.cause, call, tensor, is_nan):
                self._add("passed-on", call, tensor, origin, ~tensor.isfinite())
        elif overflows or not bad or (is_nan and not any(bool(item.isnan().any()) for item in bad)):
            origin.cause = origin  # with overflows: of an operand from outside, when it was read
            holds = not overflows and not is_nan and name_of(call.operation) in _WITH_POLES  # log(0) may be for nobody to use
            self._add("overflow" if overflows else "nonfinite", call, tensor, origin, ~tensor.isfinite(), holds=holds)
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
        if self._is_kept("overflow", call):
            return
        for tensor, origin in results:
            system, exact = call.system_of(tensor), self._exact_of(call, tensor)
            is_lost = (tensor == system.max_finite) | (tensor == system.min_finite)
            if exact is not None:
                is_lost &= (exact > system.max_finite) | (exact < system.min_finite)
            if bool(is_lost.any()):
                self._add("overflow", call, tensor, origin, is_lost)
                return
        if are_all:
            self._add("overflow", call, *results[0], torch.zeros((), dtype=torch.bool), "inside, which no result shows")

    def _judge_zeros(self, call: Call, tensor: torch.Tensor, origin: Origin) -> None:
        kind = {"forward": "underflow", "backward": "zero-gradient"}.get(call.phase)
        kind = "loss-underflow" if kind and not tensor.dim() else kind
        if kind is None or self._is_kept(kind, call):
            return
        exact = self._exact_of(call, tensor)
        if exact is not None and bool((exact != 0).any()):
            self._add(kind, call, tensor, origin, exact != 0)

    def _judge_sums(self, call: Call, tensor: torch.Tensor, sums: Tally) -> None:
        if self._is_kept("swamped", call):
            return
        origin = self._origins.of(tensor)
        exact = self._exact_of(call, tensor)
        is_lost = torch.ones_like(tensor, dtype=torch.bool)
        if exact is not None:
            error = (tensor - exact).abs().nan_to_num(0.0)
            is_lost = error == error.max()
        text = f"{sums.swamped} of {sums.additions} additions inside left a sum as it was"
        self._add("swamped", call, tensor, origin, is_lost, text, sums.swamped, sums.additions)

    def _judge_statistics(self, call: Call) -> None:
        for tensor in call.written:
            if tensor.is_floating_point() and tensor.numel() and torch.equal(call.as_read(tensor), tensor):
                exact = self._exact_of(call, tensor)
                if exact is not None and bool((exact != tensor).any()):
                    origin = Origin(call, running_line(), ())
                    self._add("stale-statistic", call, tensor, origin, exact != tensor)

    @staticmethod
    def _exact_of(call: Call, tensor: torch.Tensor) -> torch.Tensor | None:
        exact = call.exact()
        if exact is None:
            return None
        return next(wide for result, wide in zip(call.results, exact, strict=True) if result is tensor)

    # What is kept

    def _is_kept(self, kind: str, call: Call) -> bool:
        """Whether the first event of the kind in the call's place is known, or no more are kept."""
        return _key(kind, call) in self.events or len(self.events) >= self.most

    def _add(
        self, kind: str, call: Call, tensor: torch.Tensor, origin: Origin | None, where: torch.Tensor, text: str = "",
        count: int = 0, elements: int = 0, holds: bool = False,
    ) -> None:  # fmt: skip
        if self._is_kept(kind, call):
            return
        places = where.reshape(-1).nonzero()
        element, fmt, name, module = Element(), call.system_of(tensor), _name_of(call, tensor), call.module_of(tensor)
        if places.numel():
            element = element_of(call, tensor, self._exact_of(call, tensor), int(places[0]))
        line = origin.line if origin is not None else running_line()
        share = f"{text or f'{places.numel()} of {tensor.numel()} elements'}{name and f' of {name}'}"
        event = (
            _key(kind, call), (call.step, module, call.name, call.phase), line, element, fmt.name, count or places.numel(),
            elements or tensor.numel(), f"{share}; {sentence(element, fmt)}" if places.numel() else share,
            call.magnitudes_of(tensor).nonfinite > 0, chain_to(origin) if origin is not None else (),
        )  # fmt: skip
        if origin is not None and holds:
            origin.held = event
        else:
            self.note(*event)

    def _add_update(self, kind: str, update: Update, where: torch.Tensor, text: str) -> None:
        module, operation, phase = update.where.module, name_of_operation(update.where.operation), update.where.phase
        key = (kind, update.name or module, operation, phase)
        if key in self.events or len(self.events) >= self.most:
            return
        place = int(where.reshape(-1).nonzero()[0])
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), update.target.shape))
        value = float(update.target[index])
        name = update.name or "a parameter"
        element = Element(index, ((f"{name}[{', '.join(map(str, index))}]", value),), None, value)
        count = update.updates if kind == "stopped" else update.lost
        said = f"{text.format(name, count, update.target.numel())}: e.g. {value:.6g}"
        self.note(
            key, (self._step, module, operation, phase), running_line(), element, update.where.format, update.lost,
            update.target.numel(), said, False,
        )  # fmt: skip


def _reads_mask(call: Call) -> bool:
    """Whether all that is not finite, of what it read from outside and of its results, is -infinity: as of a mask's -1e9."""
    read = [value for _, _, value in call.outside if not is_finite(value)]
    results = [result for result in call.emulated if not is_finite(result)]
    return bool(read and results) and not any(bool((item.isnan() | (item == torch.inf)).any()) for item in (*read, *results))


def _name_of(call: Call, tensor: torch.Tensor) -> str:
    """The parameter that a result is of, or whose gradient it is where that is stored; "" for what is neither."""
    node = torch._C._current_autograd_node() if call.phase == "backward" else None
    if isinstance(node, torch._C._functions.AccumulateGrad):  # type: ignore[attr-defined]
        return f"the gradient of {marks.name_of_parameter(node.variable) or 'a parameter'}"
    return marks.name_of_parameter(tensor)


def _key(kind: str, call: Call) -> tuple[str, ...]:
    return (kind, call.module) if kind == "passed-on" else (kind, call.module, call.name, call.phase)
