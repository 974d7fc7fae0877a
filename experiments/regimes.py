"""Arms of several regimes, each named `REGIME: ARM`: tables, a picture, and differences in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scipy import stats

from experiments.answer import Table, Verdict
from experiments.comparison import Arm, Comparison
from experiments.statistics import Paired, paired

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def shown_small(equivalence: Verdict) -> Verdict:
    """What becomes of a loss that is not significant: refuted only where equivalence is shown."""
    return Verdict.REFUTED if equivalence is Verdict.CONFIRMED else Verdict.INCONCLUSIVE


def difference(found: Paired, p: float, verdict: Verdict, arms: Sequence[Arm]) -> str:
    """A difference and its test; of an inconclusive one the seeds that would show it, with a power of 80 %."""
    said = f"{found.mean:+.2f} points [{found.low:+.2f}, {found.high:+.2f}], p = {p:.2g}"
    if verdict is not Verdict.INCONCLUSIVE or abs(found.mean) < 1e-9:
        return said
    needed = math.ceil(((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * found.deviation / found.mean) ** 2) + 1
    seconds = sum(record.seconds for arm in arms for record in arm.records) / found.count
    return (
        f"{said}; if that is the difference, about {needed} seeds would show it, {needed * seconds / 3600:.2g} h of a processor"
    )


def tables(found: dict[str, Comparison]) -> list[Table]:
    """Accuracies and test losses of each regime."""
    made = []
    for comparison in found.values():
        losses = {name: [float(record.result["test_loss"]) for record in arm.records] for name, arm in comparison.arms.items()}
        rows = []
        for name, values in losses.items():
            against = paired(values, losses[comparison.reference], 1.0)
            interval = "" if name == comparison.reference else f"{against.mean:+.4f} [{against.low:+.4f}, {against.high:+.4f}]"
            rows.append((name, f"{math.fsum(values) / len(values):.4f}", interval))
        columns = ("arm", "test loss", f"minus {comparison.reference}, 95 %")
        made += [comparison.table(), Table("Mean test loss, in float64:", columns, rows)]
    return made


def draw(figure: Figure, found: dict[str, Comparison], marked: str) -> None:
    """Differences from the reference, a dot a seed, beside the margin; a panel a regime. Arms that end so are marked."""
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (regime, comparison) in zip(panels, found.items(), strict=True):
        names = list(comparison.paired)[::-1]
        other = comparison.arms[comparison.reference].accuracies
        for place, name in enumerate(names):
            row = comparison.paired[name]
            color = "0.5" if name == comparison.null else "#b2182b" if name.endswith(marked) else "#2166ac"
            points = [a - b for a, b in zip(comparison.arms[name].accuracies, other, strict=True)]
            axes.plot(points, [place + 0.2] * len(points), ".", color=color, alpha=0.5, ms=4)
            axes.plot([row.low, row.high], [place, place], color=color)
            axes.plot([row.mean], [place], "o", color=color, ms=4)
        axes.axvspan(-row.margin, row.margin, color="0.92")
        axes.set_yticks(range(len(names)), [name.partition(": ")[2] for name in names], fontsize=7)
        axes.set_title(regime, fontsize=9)
        axes.set_xlabel(f"accuracy less that of {comparison.reference.partition(': ')[2]}, points", fontsize=8)
