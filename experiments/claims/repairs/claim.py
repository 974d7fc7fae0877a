"""Updates stored in each of the ways that there are, in fp16: the runs of `updates`."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.answer import Answer, Finding, Verdict
from experiments.claims.updates.claim import LOST, SETTING, by_regime, differences
from experiments.comparison import Comparison
from experiments.regimes import draw, tables
from experiments.runs import Record

#: A regime, and that whose fp32 runs are its reference: fp32 has the same bits with gradients 2^-16 as large.
REGIMES = {"large steps": "", "small steps": "", "small gradients": "large steps"}
OPPOSITE = {
    Verdict.CONFIRMED: Verdict.REFUTED, Verdict.INCONCLUSIVE: Verdict.INCONCLUSIVE, Verdict.REFUTED: Verdict.CONFIRMED,
}  # fmt: skip


def judge(records: Sequence[Record]) -> Answer:
    regimes = {name: by_regime(records, name, "fp16", of) for name, of in REGIMES.items()}
    found = {name: comparison for name, comparison in regimes.items() if comparison is not None}
    findings = [finding for name, comparison in found.items() for finding in _findings(name, comparison)]
    summary = "; ".join(f"{name}, minus fp32: {', '.join(differences(name, comparison))}" for name, comparison in found.items())
    return Answer(summary, findings, tables(found), lambda figure: draw(figure, found, "nearest"), (LOST,))


def _findings(regime: str, found: Comparison) -> list[Finding]:
    names = [name for name in found.paired if name.startswith(f"{regime}: fp16")]
    conditions = f"{regime}; {SETTING}, {len(found.arms[found.reference].records)} seeds"
    findings = []
    for name in names:
        arm = found.arms[name]
        underflows = sum(record.result["underflows"] for record in arm.records) / len(arm.records)
        row = found.paired[name]
        reached = found.finding(name, f"{name.partition(': ')[2]}: ends below the accuracy of fp32", conditions)
        verdict = OPPOSITE[reached.verdict]
        if verdict is Verdict.CONFIRMED and row.mean > 0:
            verdict = Verdict.REFUTED  # away from fp32, and better
        statistic = f"{reached.statistic}; {underflows:,.0f} underflows a run, {arm.unstable} unstable"
        findings.append(Finding(reached.statement, verdict, statistic, conditions))
    return findings
