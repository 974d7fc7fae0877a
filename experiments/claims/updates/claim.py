"""Updates stored in each of the ways that there are, in bf16."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from scipy import stats

from experiments.answer import Answer, Finding, Table, Verdict
from experiments.comparison import Arm, Comparison, compare
from experiments.runs import Record
from experiments.statistics import Paired, holm, paired
from experiments.training import train as measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["judge", "measure"]

MARGIN = 0.5
SETTING = "digits, 64-64-10, SGD .9 falling to 0, sums in fp32"
REPAIRS = ("stochastic", "Kahan", "fp32 weights")


def judge(records: Sequence[Record]) -> Answer:
    regimes = {name: by_regime(records, name, "bf16") for name in ("large steps", "small steps")}
    found = {name: comparison for name, comparison in regimes.items() if comparison is not None}
    findings = [finding for name, comparison in found.items() for finding in _findings(name, comparison)]
    summary = "; ".join(f"{name}, minus fp32: {', '.join(differences(name, comparison))}" for name, comparison in found.items())
    return Answer(summary, findings, tables(found), lambda figure: draw(figure, found), (LOST,))


LOST = (
    "Updates lost are of all writes to weights that the machine rounds; where updates are stochastic or compensated, the step "
    "of the wrapped optimizer, which is then stored anew, is one of them."
)


def by_regime(records: Iterable[Record], regime: str, fmt: str, reference: str = "") -> Comparison | None:
    """The arms of one format in a regime against the fp32 of the regime, or of another; None where there are no runs of it."""
    of = reference or regime
    references = (f"{of}: fp32", f"{of}: fp32, one ulp off")
    chosen = [record for record in records if record.run.arm in references or record.run.arm.startswith(f"{regime}: {fmt}")]
    if not any(record.run.arm.startswith(f"{regime}: ") for record in chosen):
        return None
    return compare(chosen, *references, MARGIN)


def _findings(regime: str, found: Comparison) -> list[Finding]:
    findings = []
    nearest = f"{regime}: bf16, nearest"
    conditions = f"{regime}; {SETTING}, {len(found.arms[nearest].records)} seeds"
    lost = found.paired[nearest]
    reached = Verdict.CONFIRMED if lost.different < 0.05 and lost.mean < 0 else shown_small(found.verdict(nearest))
    findings.append(
        Finding(
            "bf16 updates to nearest end below the accuracy of fp32", reached,
            difference(lost, lost.different, reached, (found.arms[nearest], found.arms[found.reference])), conditions,
        )
    )  # fmt: skip
    repairs = [name for repair in REPAIRS if (name := f"{regime}: bf16, {repair}") in found.arms]
    gains = [paired(found.arms[name].accuracies, found.arms[nearest].accuracies, MARGIN) for name in repairs]
    corrected = holm([gain.different for gain in gains])
    equivalent = holm([gain.equivalent for gain in gains])
    for name, gain, p, same in zip(repairs, gains, corrected, equivalent, strict=True):
        settled = Verdict.REFUTED if same < 0.05 else Verdict.INCONCLUSIVE
        verdict = Verdict.CONFIRMED if p < 0.05 and gain.mean > 0 else settled
        arms = (found.arms[name], found.arms[nearest])
        findings.append(
            Finding(f"{name.partition(', ')[2]}: gains on nearest", verdict, difference(gain, p, verdict, arms), conditions)
        )
    findings += [
        found.finding(name, f"{name.partition(', ')[2]}: ends at the accuracy of fp32", conditions) for name in repairs
    ]
    return findings


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
        f"{said}; if that is the difference, about {needed} seeds would show it, {needed * seconds / 3600:.1g} h of a processor"
    )


def differences(regime: str, found: Comparison) -> list[str]:
    """Of each arm but the null, in words."""
    return [f"{name.partition(': ')[2]} {row.mean:+.2f}" for name, row in found.paired.items() if name != found.null]


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


def draw(figure: Figure, found: dict[str, Comparison]) -> None:
    """Differences from fp32, a dot a seed, beside the margin; a panel a regime."""
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (regime, comparison) in zip(panels, found.items(), strict=True):
        names = list(comparison.paired)[::-1]
        other = comparison.arms[comparison.reference].accuracies
        for place, name in enumerate(names):
            row = comparison.paired[name]
            color = "0.5" if name == comparison.null else "#b2182b" if name.endswith("nearest") else "#2166ac"
            points = [a - b for a, b in zip(comparison.arms[name].accuracies, other, strict=True)]
            axes.plot(points, [place + 0.2] * len(points), ".", color=color, alpha=0.5, ms=4)
            axes.plot([row.low, row.high], [place, place], color=color)
            axes.plot([row.mean], [place], "o", color=color, ms=4)
        axes.axvspan(-MARGIN, MARGIN, color="0.92")
        axes.set_yticks(range(len(names)), [name.partition(": ")[2] for name in names], fontsize=7)
        axes.set_title(regime, fontsize=9)
        axes.set_xlabel("accuracy minus fp32's, points", fontsize=8)
