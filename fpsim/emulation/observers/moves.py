"""What became of parameters: those that a step was meant to move and did not, and those whose decay left no trace."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from fpsim.emulation.machine import marks
from fpsim.emulation.machine.updates import Update
from fpsim.emulation.observers.call import Call
from fpsim.emulation.observers.explanation import Element
from fpsim.emulation.observers.origins import Origins
from fpsim.emulation.observers.source import Line, running_line
from fpsim.emulation.observers.standing import Key
from fpsim.emulation.observers.timeline import Timeline
from fpsim.emulation.report import name_of_operation
from fpsim.emulation.schemas import name_of, names
from fpsim.numbers.rounding import Rounding

_NEARLY_ALL = 0.95  # of the elements of a parameter
_LARGE = 2  # times its step
_ADDITIONS = frozenset(names("add _foreach_add"))
_FUSED = frozenset(names("_fused_adam _fused_sgd _fused_adagrad"))  # those that add a decay to the gradient


class Moves:
    """The parameters of a step, as they were before it; what happened to them goes to the timeline."""

    def __init__(self, timeline: Timeline, origins: Origins):
        self._timeline, self._standing, self._origins = timeline, timeline.standing, origins
        self._begun: dict[int, torch.Tensor] = {}  # by address
        self._decayed: dict[int, tuple[Any, ...]] = {}  # by address, an event, if the parameter turns out to be large enough
        self._step = 0

    def before(self, call: Call) -> None:
        """An operation is about to write to its arguments."""
        self._step = call.step
        for tensor in call.written:
            if marks.is_parameter(tensor):
                self._begun.setdefault(tensor.data_ptr(), call.as_read(tensor))

    def after_step(self) -> None:
        self._begun.clear()
        self._decayed.clear()

    def after_update(self, update: Update) -> None:
        """A parameter stopped, or only its step shows and its decay does not."""
        before = self._begun.pop(update.target.data_ptr(), None)
        if before is None or before.shape != update.target.shape or not update.updates:
            return
        after = update.target.detach()
        decayed = self._decayed.pop(update.target.data_ptr(), None)
        if decayed is not None and before.norm() >= _LARGE * (after - before).norm():
            key, *event = decayed
            if self._is_first(("coupled decay", key[1]), key):
                self._timeline.note(key, *event)
        stays = before == after
        kept = 0 if update.kept is None else int((stays & update.kept).sum())
        if update.lost - kept < _NEARLY_ALL * update.updates:  # whatever else was meant to change did
            for kind in ("stopped", "decay-lost"):
                self._standing.move((kind, _said_to_be(update)))
            return
        moved = stays.numel() - int(stays.sum())
        if moved <= (1 - _NEARLY_ALL) * update.updates:
            origin = None if update.target.grad is None else self._origins.of(update.target.grad)
            if origin is not None and origin.is_of_errors:
                return  # as of a bias before batch norm, whose gradient is exactly 0
            text = f"{{}} stays where it is: {moved} elements changed, and a step was meant to change {update.updates} of {{}}"
            self._note("stopped", update, stays, text)
        elif moved > update.updates // 2:
            text = f"the decay of {{}} left no trace in {update.lost} of {{}} elements, though the step moved them"
            self._note("decay-lost", update, ~stays, text)

    def judge_gradient(self, call: Call, result: torch.Tensor, line: Line | None) -> None:
        """A decay that is added to the gradient, as SGD and Adam have it, and leaves it as it is.

        Told of when the step ends: of a parameter that is small beside its own step no decay shows in any arithmetic.
        """
        if call.phase != "optimizer" or name_of(call.operation) not in _ADDITIONS or call.rounding is Rounding.STOCHASTIC:
            return
        given = call.arguments_of(result)
        gradient, parameter = given.get("self"), given.get("other")
        if not (isinstance(gradient, torch.Tensor) and isinstance(parameter, torch.Tensor)) or not given.get("alpha", 1):
            return
        if marks.is_parameter(gradient) or not marks.is_parameter(parameter) or gradient.shape != parameter.shape:
            return
        self._judge_decay(call, parameter, call.as_read(gradient), result == call.as_read(gradient), line)

    def judge_fused(self, call: Call, line: Line | None) -> None:
        """The same of a fused step, which adds in float64: all that it stores would be the same without the decay."""
        if name_of(call.operation) not in _FUSED or not call.kwargs["weight_decay"] or call.rounding is Rounding.STOCHASTIC:
            return
        with_it, without = call.exact(), call.exactly(weight_decay=0.0)
        assert with_it is not None and without is not None
        stored = {id(result): result for result in call.results}
        pairs = dict(zip(stored, zip(with_it, without, strict=True), strict=True))
        for parameter, gradient in zip(*call.args[:2], strict=True):
            is_lost = torch.ones(parameter.shape, dtype=torch.bool)
            for key in {id(item) for item in call.arguments_of(parameter).values()} & stored.keys():
                one, other = (call.held(stored[key], value) for value in pairs[key])
                is_lost &= one == other
            self._judge_decay(call, parameter, call.as_read(gradient), is_lost, line)

    def _judge_decay(
        self, call: Call, parameter: torch.Tensor, gradient: torch.Tensor, is_traceless: torch.Tensor, line: Line | None
    ) -> None:
        decay = call.as_read(parameter)
        is_meant = decay != 0
        lost, meant = is_meant & is_traceless, int(is_meant.sum())
        count = int(lost.sum())
        key, name = _key_of_decay(call, parameter), marks.name_of_parameter(parameter)
        if count < _NEARLY_ALL * meant:
            self._standing.move(("coupled decay", key[1]))
        if not meant or count < _NEARLY_ALL * meant:
            return
        if self._timeline.is_kept(key):
            self._decayed[parameter.data_ptr()] = (key,)
            return
        index = tuple(lost.nonzero()[0].tolist())
        value, where = float(gradient[index]), ", ".join(map(str, index))
        element = Element(index, ((f"gradient[{where}]", value), (f"{name}[{where}]", float(decay[index]))), None, value)
        text = f"the decay of {name or 'a parameter'} was added to its gradient and left no trace in {count} of {lost.numel()}"
        self._decayed[parameter.data_ptr()] = (
            key, (call.step, _module_of(call, parameter), call.name, call.phase), line, element,
            call.system_of(parameter).name, count, lost.numel(),
            f"{text} elements: e.g. {value:.6g}, the weight being {float(decay[index]):.6g}", False,
        )  # fmt: skip

    def _is_first(self, subject: Hashable, key: Key) -> bool:
        """Whether the event is to be told of; its subject stood in any case."""
        self._standing.stand(subject, key)
        return not self._timeline.is_kept(key)

    def _note(self, kind: str, update: Update, where: torch.Tensor, text: str) -> None:
        module, operation, phase = update.where.module, name_of_operation(update.where.operation), update.where.phase
        key = (kind, _said_to_be(update), operation, phase)
        if not self._is_first(key[:2], key):
            return
        index = tuple(where.nonzero()[0].tolist())
        value, name = float(update.target[index]), update.name or "a parameter"
        element = Element(index, ((f"{name}[{', '.join(map(str, index))}]", value),), None, value)
        self._timeline.note(
            key, (self._step, module, operation, phase), running_line(), element, update.where.format, update.lost,
            update.target.numel(), f"{text.format(name, update.target.numel())}: e.g. {value:.6g}", False,
        )  # fmt: skip


def _said_to_be(update: Update) -> str:
    return update.name or update.where.module


def _module_of(call: Call, parameter: torch.Tensor) -> str:
    found = marks.module_of((parameter,))
    return call.module if found is None else found


def _key_of_decay(call: Call, parameter: torch.Tensor) -> tuple[str, ...]:
    return ("decay-lost", marks.name_of_parameter(parameter) or _module_of(call, parameter), call.name, call.phase)
