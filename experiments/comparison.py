"""Arms of trainings compared with one of them, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.answer import Finding, Table, Verdict
from experiments.runs import Record
from experiments.statistics import Paired, holm, paired


@dataclass(frozen=True)
class Arm:
    """The runs of an arm in the order of their seeds."""

    name: str
    records: Sequence[Record]

    @property
    def accuracies(self) -> list[float]:
        """In percent."""
        return [100 * record.result["correct"] / record.result["of"] for record in self.records]

    @property
    def mean(self) -> float:
        return sum(self.accuracies) / len(self.records)

    @property
    def unstable(self) -> int:
        return sum(not record.result["stable"] for record in self.records)

    @property
    def lost(self) -> float:
        """The share of updates that rounding undid."""
        updates = sum(record.result["updates"] for record in self.records)
        return sum(record.result["lost"] for record in self.records) / max(updates, 1)


def arms_of(records: Sequence[Record]) -> dict[str, Arm]:
    """By name, in the order of the configuration."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.run.arm, []).append(record)
    return {name: Arm(name, sorted(some, key=lambda record: record.run.seed)) for name, some in found.items()}


@dataclass(frozen=True)
class Comparison:
    """Each arm against the reference; p of equivalence and of its contrary, corrected for as many tests as there are arms."""

    arms: Mapping[str, Arm]
    reference: str
    null: str
    paired: Mapping[str, Paired]
    corrected: Mapping[str, float]
    outside: Mapping[str, float]

    def apart(self, name: str) -> float:
        """The mean |difference| from the reference, in points."""
        other = self.arms[self.reference].accuracies
        return sum(abs(a - b) for a, b in zip(self.arms[name].accuracies, other, strict=True)) / len(other)

    def verdict(self, name: str) -> Verdict:
        """Equivalence within the margin shown, excluded, or neither."""
        if self.corrected[name] < 0.05:
            return Verdict.CONFIRMED
        return Verdict.REFUTED if self.outside[name] < 0.05 else Verdict.INCONCLUSIVE

    def p(self, name: str) -> str:
        """What the verdict rests on."""
        return f"p = {self.corrected[name]:.2g} that it is within the margin, {self.outside[name]:.2g} that it is beyond (Holm)"

    def finding(self, name: str, statement: str, conditions: str) -> Finding:
        """The verdict on "this arm ends at the reference's accuracy"."""
        found = self.paired[name]
        statistic = (
            f"{found.mean:+.2f} points [{found.low:+.2f}, {found.high:+.2f}], {self.p(name)}; "
            f"apart by {self.apart(name):.2f}, the null by {self.apart(self.null):.2f}"
        )
        return Finding(statement, self.verdict(name), statistic + self.needed(name), conditions)

    def needed(self, name: str) -> str:
        """What would settle an inconclusive comparison; nothing for others."""
        if self.verdict(name) is not Verdict.INCONCLUSIVE:
            return ""
        found = self.paired[name]
        within, beyond = found.seeds_needed, found.seeds_to_exclude
        seeds = within or beyond
        if seeds is None:
            return "; the mean is at the margin itself"
        seconds = sum(record.seconds for record in (*self.arms[name].records, *self.arms[self.reference].records))
        hours = seconds / found.count * seeds / 3600
        where = "beyond" if within is None else "within"
        return f"; about {seeds} seeds would show this mean to be {where} it, {hours:.2g} h of a processor"

    def table(self) -> Table:
        rows = []
        for name, arm in self.arms.items():
            found = self.paired.get(name)
            cells: tuple[object, ...] = ("", "", "", "", "")
            if found is not None:
                cells = (
                    f"{found.mean:+.2f}", f"[{found.low:+.2f}, {found.high:+.2f}]", f"{self.apart(name):.2f}",
                    f"{self.corrected[name]:.2g}", f"{found.resolvable:.2f}",
                )  # fmt: skip
            rows.append((name, f"{arm.mean:.2f}", *cells, f"{arm.unstable} of {len(arm.records)}", f"{arm.lost:.1%}"))
        columns = (
            "arm", "accuracy", f"minus {self.reference}", "95 %", "mean apart", "TOST p (Holm)", "margin resolved", "unstable",
            "updates lost",
        )  # fmt: skip
        return Table(f"Accuracy in percent, differences in points, {len(arm.records)} seeds:", columns, rows)


def compare(records: Sequence[Record], reference: str, null: str, margin: float) -> Comparison:
    """All arms against the reference. Each needs at least two seeds."""
    arms = arms_of(records)
    others = [name for name in arms if name != reference]
    found = {name: paired(arms[name].accuracies, arms[reference].accuracies, margin) for name in others}
    corrected = holm([found[name].equivalent for name in others])
    outside = holm([found[name].outside for name in others])
    return Comparison(
        arms, reference, null, found, dict(zip(others, corrected, strict=True)), dict(zip(others, outside, strict=True))
    )
