"""What an observer is, and the one table of those that have a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from fpsim.emulation.machine.updates import Update
from fpsim.emulation.observers.call import Call, Operation
from fpsim.emulation.observers.conversion import Conversion
from fpsim.emulation.report import Draft


class Observer:
    """Told of every operation that makes or moves numbers under emulation; a subclass says what it keeps of them.

    Views, memory that nothing was written to yet, and reading what was made (`item`), are no such operation. An operation
    that is made of others (under granularity="primitive") is told after its parts, which have it as their `outer`. The thread
    that computes calls, with torch's dispatch disabled: what an observer computes with torch is torch's own, and not
    observed. It must change none of the tensors, write through no array of one, and keep no `Call`, whose tensors would stay
    in memory.
    """

    #: Whether `Call.sums` shall count what happens inside products and sums, which takes slower kernels.
    looks_into_sums = False
    #: Whether it shall count the additions and those that lost an addend alone, which takes less.
    looks_for_swamping = False
    #: Whether `Call.exact` and `Call.operands` shall be of what was there before the operation wrote to it (a copy of that).
    keeps_operands = False
    #: Whether `Call.counts` shall say what rounding did to the results of this operation.
    looks_at_counts = True
    #: Whether `before` is about operations alone that write to an argument.
    is_before_writing = False

    def wants(self, operation: Operation) -> bool:
        """Whether it is to be told of an operation at all; asked once for each."""
        return True

    def before(self, call: Call) -> None:
        """An operation is about to be computed."""

    def after(self, call: Call) -> None:
        """It was computed; not called where it raised."""

    def after_conversion(self, conversion: Conversion) -> None:
        """`fpsim.run` had rounded a parameter, before anything was observed, and it overflowed or became 0."""

    def after_update(self, update: Update) -> None:
        """A parameter was changed, or was meant to be: once in an optimizer's step, and by each operation outside of one."""

    def reset(self) -> None:
        """Forget what was seen."""

    def contribute(self, draft: Draft) -> None:
        """Add what was seen to a report."""

    def after_unscaling(self, gradients: list[torch.Tensor], factor: float) -> None:
        """A loss scaler has multiplied gradients by a factor, in place, which is no operation that makes emulated numbers."""

    def after_skip(self, step: int) -> None:
        """A loss scaler has found gradients that are not finite, and does without the training step of that number."""

    def after_step(self, step: int) -> None:
        """An optimizer's step has ended: the training step of that number, from 0."""


#: By name: what `observe="..."` makes one of.
OBSERVERS: dict[str, type[Observer]] = {}


def observer_named(name: str) -> Callable[[type[Observer]], type[Observer]]:
    """A decorator that names a class of observers. Raises ValueError for a name that is taken, TypeError for no observer."""

    def register(kind: type[Observer]) -> type[Observer]:
        if not (isinstance(kind, type) and issubclass(kind, Observer)):
            raise TypeError(f"a named observer is a class derived from fpsim.emulation.Observer, got {kind!r}")
        if name in OBSERVERS:
            raise ValueError(f"an observer {name!r} exists already ({OBSERVERS[name].__name__})")
        OBSERVERS[name] = kind
        return kind

    return register


def get_observers(observe: Any, on_nonfinite: str | None = None) -> tuple[Observer, ...]:
    """What `observe=` says: nothing, an observer or the name of one, or several of these; and who looks for `on_nonfinite=`.

    Raises TypeError for anything else, a class among them, and ValueError for unknown names.
    """
    if on_nonfinite is not None:
        return (*get_observers(observe), OBSERVERS["events"](on_nonfinite=on_nonfinite))  # type: ignore[call-arg]
    if observe is None:
        return ()
    if isinstance(observe, Observer):
        return (observe,)
    if isinstance(observe, str):
        if observe not in OBSERVERS:
            raise ValueError(f"unknown observer {observe!r}; known: {', '.join(sorted(OBSERVERS))}")
        return (OBSERVERS[observe](),)
    if not isinstance(observe, Iterable):
        raise TypeError(f"observe takes observers and their names, got {observe!r}: derive from fpsim.emulation.Observer")
    return tuple(found for item in observe for found in get_observers(item))
