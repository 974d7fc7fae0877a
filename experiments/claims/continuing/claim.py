"""More training in 16 bits, after fp32, against none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from experiments.answer import Answer, Finding, Table
from experiments.comparison import Comparison, compare
from experiments.runs import Record
from experiments.training import Trainer, Training, trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCE, MARGIN = "no further training", 0.5


def measure(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a training that goes on from fp32 weights, and the share of weights that it moved."""
    given = dict(configuration)
    before = given.pop("before")
    asked = Training.of(given)
    trainer = Trainer(asked)
    first = replace(asked, fmt="fp32", accumulate="fp32", update="nearest", lr=0.05, epochs=before)
    trainer.simulation.load_state_dict(trained(first))
    start = [parameter.detach().clone() for parameter in trainer.simulation.parameters()]
    trainer.epoch = before
    for _ in range(asked.epochs):
        trainer.run_epoch()
    moved = sum(int((a != b).sum()) for a, b in zip(start, trainer.simulation.parameters(), strict=True))
    return {**trainer.result(), "moved": moved, "weights": sum(part.numel() for part in start)}


def judge(records: Sequence[Record]) -> Answer:
    found = compare(records, REFERENCE, REFERENCE, MARGIN)
    seeds = len(found.arms[REFERENCE].records)
    findings = [_finding(found, name, seeds) for name in found.paired]
    still = {name: _moved(found, name) for name in found.paired}
    summary = ", ".join(
        f"{name}: {found.paired[name].mean:+.2f} points, {still[name]:.0%} of weights moved"
        for name in found.paired
        if "fp16 sums fp16" in name
    )
    table = found.table()
    rows = [(*row[:-2], f"{_moved(found, row[0]):.1%}", *row[-2:]) for row in table.rows]
    table = Table(table.title, (*table.columns[:-2], "weights moved", *table.columns[-2:]), rows)
    return Answer(summary, findings, (table,), lambda figure: _draw(figure, found))


def _moved(found: Comparison, name: str) -> float:
    records = found.arms[name].records
    return sum(record.result["moved"] for record in records) / sum(record.result["weights"] for record in records)


def _finding(found: Comparison, name: str, seeds: int) -> Finding:
    row = found.paired[name]
    statistic = (
        f"{row.mean:+.2f} points [{row.low:+.2f}, {row.high:+.2f}], {found.p(name)}; "
        f"{_moved(found, name):.1%} of weights moved, {found.arms[name].lost:.1%} of updates lost"
    )
    statement, verdict = f"{name}: keeps the accuracy", found.verdict(name)
    return Finding(statement, verdict, statistic + found.needed(name), f"digits, trained in fp32 before, {seeds} seeds")


def _draw(figure: Figure, found: Comparison) -> None:
    axes = figure.subplots()
    for name in found.paired:
        axes.plot([100 * _moved(found, name)], [found.paired[name].mean], "o", label=name)
    axes.axhspan(-MARGIN, MARGIN, color="0.92")
    axes.set(xlabel="weights that moved, %", ylabel="accuracy minus that of no further training, points")
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, frameon=False, loc="outside right center")
