"""The published architectures in three precisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from experiments.answer import Answer
from experiments.comparison import compare
from experiments.runs import Record, Run
from experiments.training import Training, expected_seconds, train

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"fmt": "fp32"},
    "fp16": {"fmt": "fp16", "norms": "fp32"},
    "mixed": {"fmt": "fp16", "norms": "fp32", "update": "fp32", "loss": "wide", "loss_scale": 128.0},
}


def _training(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training."""
    precision = PRECISIONS[configuration["precision"]]
    return {**{key: value for key, value in configuration.items() if key != "precision"}, **precision}


def measure(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a whole training."""
    return train(_training(configuration))


def expected(configuration: Mapping[str, Any]) -> float:
    """Processor seconds, from the number of multiply-adds."""
    return expected_seconds(Training.of(_training(configuration)))


def judge(records: Sequence[Record]) -> Answer:
    findings, tables = [], []
    for model in dict.fromkeys(record.run.arm for record in records):
        some = [_by_precision(record) for record in records if record.run.arm == model]
        found = compare(some, "fp32", "fp32", 0.5)
        seeds = len(found.arms["fp32"].records)
        findings += [found.finding(name, f"{model}: {name} as fp32", f"{seeds} seeds") for name in found.paired]
        table = found.table()
        tables.append(replace(table, title=f"{model}: {table.title}"))
    return Answer(f"{len(tables)} architectures", findings, tables)


def _by_precision(record: Record) -> Record:
    configuration = {**record.run.configuration, "arm": record.run.configuration["precision"]}
    return replace(record, run=Run(record.run.claim, configuration))
