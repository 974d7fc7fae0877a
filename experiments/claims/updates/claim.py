"""Updates stored in each of the ways that there are, in bf16."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.answer import Answer, Finding, Verdict
from experiments.comparison import Comparison, compare
from experiments.regimes import difference, draw, shown_small, tables
from experiments.runs import Record
from experiments.statistics import holm, paired
from experiments.training import train as measure

__all__ = ["judge", "measure"]

MARGIN = 0.5
SETTING = "digits, 64-64-10, SGD .9 falling to 0, sums in fp32"
REPAIRS = ("stochastic", "Kahan", "fp32 weights")


def judge(records: Sequence[Record]) -> Answer:
    regimes = {name: by_regime(records, name, "bf16") for name in ("large steps", "small steps")}
    found = {name: comparison for name, comparison in regimes.items() if comparison is not None}
    findings = [finding for name, comparison in found.items() for finding in _findings(name, comparison)]
    summary = "; ".join(f"{name}, minus fp32: {', '.join(differences(name, comparison))}" for name, comparison in found.items())
    return Answer(summary, findings, tables(found), lambda figure: draw(figure, found, "nearest"), (LOST,))


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


def differences(regime: str, found: Comparison) -> list[str]:
    """Of each arm but the null, in words."""
    return [f"{name.partition(': ')[2]} {row.mean:+.2f}" for name, row in found.paired.items() if name != found.null]
