"""Events as they are told: what happened where, in words, and what is done at the first number that is not finite."""

from __future__ import annotations

import gc
import warnings
from dataclasses import replace

import torch

from fpsim.emulation.errors import NonFinite
from fpsim.emulation.observers.explanation import Element
from fpsim.emulation.observers.source import Line, place_of
from fpsim.emulation.observers.standing import Standing
from fpsim.report.records import EVENTS, Event, Link


class Timeline:
    """The first event by each key, whose first part is its kind.

    on_nonfinite : "raise" (`NonFinite`) or "warn" at the first number that is not finite and was not asked for; None goes on
    most : how many are kept
    """

    def __init__(self, on_nonfinite: str | None, most: int):
        self.on_nonfinite, self.most = on_nonfinite, most
        self.events: dict[tuple[str, ...], Event] = {}
        self.standing = Standing()

    def is_kept(self, key: tuple[str, ...]) -> bool:
        """Whether the first event of this key is known, or no more are kept."""
        return key in self.events or len(self.events) >= self.most

    def skip(self, step: int) -> None:
        """What broke in backward passes before this step, which a loss scaler skips, breaks nothing."""
        events, self.events = self.events, {}
        for key, event in events.items():
            if event.breaks and event.phase == "backward" and event.step == step:
                key, event = ("skipped", *key[1:]), _as_kind("skipped", event)
            self.events.setdefault(key, event)

    @property
    def told(self) -> list[Event]:
        """The events as they are to be told now."""
        return [_as_kind("paused", event) if self.standing.is_over(key) else event for key, event in self.events.items()]

    def note(
        self, key: tuple[str, ...], where: tuple[int, str, str, str], line: Line | None, element: Element, fmt: str, count: int,
        elements: int, said: str, is_nonfinite: bool, chain: tuple[Link, ...] = (),
    ) -> None:  # fmt: skip
        """Keep what happened to so many of the elements at (step, module, operation, pass), one of them explained."""
        kind, (step, module, operation, phase), place = key[0], where, place_of(line)
        source = f" at {place}{f' ({place.text})' if place.text else ''}" if place is not None else ""
        at = f"{module or 'outside any module'}, {operation}, {phase} pass of step {step}{source}"
        event = Event(
            kind, *where, place, element.index, element.operands, element.exact, element.rounded, fmt, count, elements,
            f"{EVENTS[kind]}: {at}: {said}.", chain,
        )  # fmt: skip
        self.keep(key, event, is_nonfinite)

    def keep(self, key: tuple[str, ...], event: Event, is_nonfinite: bool) -> None:
        """Keep an event; raises, or warns of its line, as `on_nonfinite` says: not of gradients that a loss scaler judges."""
        self.events[key] = event
        if not is_nonfinite or self.on_nonfinite is None or (event.phase == "backward" and _has_loss_scaler()):
            return
        if self.on_nonfinite == "raise":
            raise NonFinite(said_of(event))
        if self.on_nonfinite == "warn":
            self.on_nonfinite = None
            if event.place is None:
                warnings.warn(said_of(event), stacklevel=2)
            else:
                warnings.warn_explicit(said_of(event), UserWarning, event.place.file, event.place.line)


def _has_loss_scaler() -> bool:
    """Whether there is one that has scaled a loss: no operation tells that a loss was scaled by one."""
    scalers = [item for item in gc.get_objects() if issubclass(type(item), torch.amp.GradScaler)]
    return any(scaler.is_enabled() and scaler._scale is not None for scaler in scalers)


def _as_kind(kind: str, event: Event) -> Event:
    return replace(event, kind=kind, text=event.text.replace(EVENTS[event.kind], EVENTS[kind], 1))


def said_of(event: Event) -> str:
    """An event and the chain behind it, as lines of text."""
    links = [f"  {link.module or '-'} {link.operation} ({link.phase}): {link.note}" for link in event.chain]
    return "\n".join([event.text, *(["behind it, the cause first:", *links] if links else [])])
