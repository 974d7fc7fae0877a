"""What an advice holds: values without behaviour beyond looking things up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fpsim.report.records import Fix
from fpsim.report.report import Report

OUTCOMES = ("restores", "helps", "does not help", "not tried")


@dataclass(frozen=True)
class Deviation:
    """How far a run is from the float64 shadow: relative errors, infinite where it is not finite and the shadow is.

    results    what the step returned, over all steps
    gradients  of the first and of the last step, as the optimizer saw them
    movement   the share of what parameters and buffers were to move that they did not, or moved too much
    """

    results: float = 0.0
    gradients: float = 0.0
    movement: float = 0.0

    @property
    def worst(self) -> float:
        """The largest of them."""
        return max(self.results, self.gradients, self.movement)


@dataclass(frozen=True)
class Attempt:
    """A change that answers the evidence.

    remedies   what was changed, one after the other
    outcome    one of `OUTCOMES`
    deviation  what remains; None where it was not tried
    reason     why it does not restore agreement, or why it was not tried
    code       the script that was run; "" where none was
    """

    remedies: tuple[str, ...]
    outcome: str
    cost: int = 0
    deviation: Deviation | None = None
    reason: str = ""
    code: str = ""

    @property
    def title(self) -> str:
        return " and ".join(self.remedies)

    @property
    def error(self) -> float:
        """NaN where it was not tried."""
        return math.nan if self.deviation is None else self.deviation.worst


@dataclass(frozen=True)
class Sensitivity:
    """The relative error when a module alone is narrow and all else fp32, and when it alone is fp32."""

    module: str
    kind: str
    narrow: float
    wide: float


@dataclass(frozen=True)
class AdviceData:
    """The numbers of an advice, which `advice.Advice` describes and shows."""

    report: Report
    deviation: Deviation
    tolerance: float
    price: float
    steps: int
    window: tuple[int, int]
    agrees: bool
    attempts: tuple[Attempt, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()
    exact_is_finite: bool = True

    @property
    def fixes(self) -> tuple[Fix, ...]:
        """Up to three, the cheapest first: each was run as its code says, and restores agreement."""
        return self.report.fixes
