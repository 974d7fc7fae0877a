"""What a report holds: values without behaviour beyond looking things up, which everything that shows a report reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fpsim.numbers.system import NumberSystem
from fpsim.report.counts import Counts, Error, Histogram, Range

PHASES = ("forward", "backward", "optimizer")
ROLES = ("weight", "activation", "gradient")

#: What can be observed: a report says which of them were, so that "none" is told from "not looked at".
PARTS = ("counts", "range", "histograms", "events", "swamping", "shadow")

#: The kinds of events, each with what it means; the first of each kind in a place is kept.
EVENTS = {
    "overflow": "a finite result was beyond the format's range",
    "nonfinite": "an infinity or NaN was made here",
    "passed-on": "an infinity or NaN came in as an operand and went on",
    "underflow": "every nonzero element of a result became zero",
    "zero-gradient": "every element of a gradient became zero, though exactly some are not",
    "stopped": "a parameter did not move, or hardly, in a step that was meant to change it",
    "decay-lost": "the decay of a parameter left no trace, though the step moved it",
    "swamped": "additions inside a sum lost their addends",
    "loss-underflow": "the loss, or the scaled loss's gradient, became zero",
    "stale-statistic": "running statistics were updated and did not move",
    "paused": "what did not move in a step moved in most of the later ones",
    "skipped": "a scaled gradient was infinite or NaN, which the loss scaler found, and so skipped the step",
}

#: Events that say nothing bad: small numbers that are lost beside larger ones, what only passes on, stands still for a moment
#: (as under a learning rate that begins at 0), or is the scale that a loss scaler tries.
ORDINARY = ("underflow", "passed-on", "paused", "skipped")

#: How what was run was computed.
TREATMENTS = ("emulated", "exact", "library")


@dataclass(frozen=True)
class Limits:
    """A format's range and precision, as numbers to set beside a value.

    emin, emax : the exponents of the smallest and of the largest normal number
    """

    name: str
    largest: float
    smallest_normal: float
    smallest_subnormal: float
    unit_roundoff: float
    emin: int
    emax: int

    @classmethod
    def of(cls, system: NumberSystem) -> Limits:
        """The limits of a number system; of one without exponents, those of the format that encloses it."""
        enclosing = system.enclosing
        return cls(
            system.name,
            system.max_finite,
            enclosing.min_normal,
            enclosing.min_subnormal,
            enclosing.unit_roundoff,
            enclosing.emin,
            enclosing.emax,
        )


@dataclass(frozen=True)
class Place:
    """A line of somebody's source. text : the line itself, stripped; "" where the file could not be read."""

    file: str
    line: int
    function: str = ""
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Module:
    """A module of the network, in the order of the first call. kind : its class's name; parameters : how many elements."""

    path: str
    kind: str
    parameters: int = 0


@dataclass(frozen=True)
class Row:
    """What happened to the results of one operation in one module and phase, over all steps.

    phase       one of `PHASES`; "" where it is not known
    format      the name of the format of the results, one of the report's `limits`
    local       the error of this operation alone, on the operands that it had; None without a shadow
    cumulative  the error against the shadow
    place       the line of the user's source that first ran it, where it is known
    """

    module: str
    operation: str
    phase: str = ""
    counts: Counts = field(default_factory=Counts)
    format: str = ""
    range: Range = field(default_factory=Range)
    local: Error | None = None
    cumulative: Error | None = None
    place: Place | None = None


@dataclass(frozen=True)
class Distribution:
    """The exponents of all weights, activations or gradients (`ROLES`) of a module, over all steps that were looked at."""

    module: str
    role: str
    format: str
    histogram: Histogram


@dataclass(frozen=True)
class Link:
    """One operation of the chain behind an event; `note` says what it did: "made 65536 from 256 * 256"."""

    module: str
    operation: str
    phase: str = ""
    note: str = ""
    place: Place | None = None


@dataclass(frozen=True)
class Event:
    """The first time that something of a kind happened in a place.

    kind       one of `EVENTS`
    step       counts optimizer steps from 0: the step during which it happened
    index      of the element it happened to first, in memory order, within the operation's result
    operands   the numbers that the element was computed from, each with its name ("input", "other", "weight[3, 5]")
    exact      the result before the last rounding, to the nearest float64; None where there is no one number
    rounded    the result
    format     the name of the format, one of the report's `limits`
    count      how many elements it happened to in this call, of `elements`
    text       one or more sentences that say what happened, to be read alone
    chain      from the cause to this operation, the cause first
    """

    kind: str
    step: int
    module: str
    operation: str
    phase: str = ""
    place: Place | None = None
    index: tuple[int, ...] = ()
    operands: tuple[tuple[str, float], ...] = ()
    exact: float | None = None
    rounded: float | None = None
    format: str = ""
    count: int = 0
    elements: int = 0
    text: str = ""
    chain: tuple[Link, ...] = ()

    @property
    def breaks(self) -> bool:
        """Whether it made an infinity or NaN; an overflow of a format that saturates makes none."""
        made = self.rounded is None or not math.isfinite(self.rounded)
        return self.kind == "nonfinite" or (self.kind == "overflow" and made)


#: What a line of a model's source that looks at dtypes does where every tensor is float32, whatever its numbers.
DTYPE_LINES = {
    "guard": "asks for a 16-bit dtype, and every tensor is float32",
    "upcast": "widens to float32, which every tensor is already",
}

DTYPE_ADVICE = 'fmt="native" with a model.half() runs such lines as they are meant.'


@dataclass(frozen=True)
class DtypeLine:
    """A line of a model's source that looks at dtypes. meaning : one of `DTYPE_LINES`."""

    place: Place
    meaning: str


@dataclass(frozen=True)
class Treatment:
    """How one operation was computed, and how often it ran.

    treatment : "emulated" (rounded as the policy says), "exact" (moves numbers), "library" (left to torch as it is)
    """

    operation: str
    treatment: str
    calls: int
    reason: str = ""


@dataclass(frozen=True)
class Measurement:
    """How well the whole did: a metric's value, the ends of a 95 % interval for it, and over what. NaN: no interval.

    degraded : whether the value is worse than what the user, or whoever measured it, allows
    """

    metric: str
    value: float
    low: float
    high: float
    samples: int
    steps: int
    degraded: bool = False


@dataclass(frozen=True)
class Fix:
    """A change that was tried or is suggested.

    code      what to paste
    verified  whether it was run; then `error` is the relative error that remains, and `evidence` a sentence of what was seen
    """

    title: str
    code: str
    verified: bool = False
    error: float | None = None
    evidence: str = ""
