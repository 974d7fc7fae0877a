"""Products of fp8 numbers with three accumulators, against 16 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from experiments.answer import Answer, Finding, Table, Verdict
from experiments.comparison import Comparison, compare
from experiments.models.scaled import ScaledLinear
from experiments.regimes import difference, draw, shown_small, tables
from experiments.runs import Record, Run
from experiments.statistics import holm, paired
from experiments.training import Trainer, Training

MARGIN = 0.5
PLAIN, UNIT, PROMOTED = "fp8 sums fp32", "fp8 sums 14 bits", "fp8 sums 14 bits, promoted"
#: Two arms and what is claimed of the first less the second, with the sign that it has then.
ACCUMULATOR = ((UNIT, PLAIN, "sums with 14 bits cost accuracy", -1), (PROMOTED, UNIT, "promotion every 128 terms gains it", 1))


def measure(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a training, and the errors of the first layer's products."""
    given = dict(configuration)
    regime = dict(given.pop("regime"))
    del regime["name"]
    trainer = Trainer(Training.of({**given, **regime}))
    while trainer.epoch < trainer.training.epochs:
        trainer.run_epoch()
    return trainer.result() | _errors(trainer)


def _errors(trainer: Trainer) -> dict[str, float]:
    """Of the first linear layer's products: by how they add, and by what they read."""
    layer = next(module for module in trainer.simulation.modules() if isinstance(module, torch.nn.Linear))
    if not isinstance(layer, ScaledLinear):
        return {}
    products, inputs = layer.products, torch.tensor(trainer.data.test_inputs[:200]).flatten(1)
    x, w = (products.narrow(tensor, products.forward) for tensor in (inputs, layer.weight))
    found = products.multiply(x, (w[0].T, w[1]), (products.forward, products.forward)).double().numpy()
    read = np.ldexp(x[0].astype(np.float64) @ w[0].T.astype(np.float64), -(x[1] + w[1]))
    exact = inputs.double().numpy() @ layer.weight.detach().double().numpy().T
    scale = np.linalg.norm(exact)
    errors = {"sums_error": np.linalg.norm(found - read), "factors_error": np.linalg.norm(read - exact)}
    return {name: float(f"{error / scale:.3g}") for name, error in errors.items()}


def judge(records: Sequence[Record]) -> Answer:
    regimes: dict[str, list[Record]] = {}
    for record in records:
        given = record.run.configuration
        name = given["regime"]["name"]
        arm = replace(record, run=Run(record.run.claim, {**given, "arm": f"{name}: {given['arm']}"}))
        regimes.setdefault(name, []).append(arm)
    found = {name: compare(some, f"{name}: 16 bits", f"{name}: 16 bits, one ulp off", MARGIN) for name, some in regimes.items()}
    findings = [
        comparison.finding(name, f"{name.partition(': ')[2]}: the accuracy of 16 bits", _conditions(regime, comparison))
        for regime, comparison in found.items()
        for name in comparison.paired
    ] + _accumulator(found)
    rows = [
        (
            name,
            *(f"{sum(r.result[key] for r in arm.records) / len(arm.records):.2g}" for key in ("sums_error", "factors_error")),
        )
        for comparison in found.values()
        for name, arm in comparison.arms.items()
        if "sums_error" in arm.records[0].result
    ]
    errors = Table("Relative error of the first layer's products:", ("arm", "by its sums", "by its factors"), rows)
    apart = "; ".join(f"{name} {_apart(comparison, name):.2f}" for name, comparison in found.items())
    summary = "minus 16 bits: " + "; ".join(
        f"{regime}: " + ", ".join(f"{arm} {comparison.paired[f'{regime}: {arm}'].mean:+.2f}" for arm in (PLAIN, UNIT, PROMOTED))
        for regime, comparison in found.items()
    )
    summary += "; errors of the first products by their sums and by their factors: " + ", ".join(
        f"{name} {sums} and {factors}" for name, sums, factors in rows if name.endswith(UNIT)
    )
    notes = [f"fp32 whose weights are moved by one ulp is apart from fp32 by, in points: {apart}."]
    return Answer(summary, findings, (*tables(found), errors), lambda figure: draw(figure, found, "not scaled"), notes)


def _conditions(regime: str, found: Comparison) -> str:
    return f"{regime}, a perceptron with batch norm, SGD .05 falling to 0, {len(found.arms[found.reference].records)} seeds"


def _apart(found: Comparison, regime: str) -> float:
    one, other = (found.arms[f"{regime}: {arm}"].accuracies for arm in ("fp32", "fp32, one ulp off"))
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def _accumulator(found: Mapping[str, Comparison]) -> list[Finding]:
    asked = [(regime, *some) for regime in found for some in ACCUMULATOR]
    arms = [[found[regime].arms[f"{regime}: {arm}"] for arm in (one, other)] for regime, one, other, _, _ in asked]
    rows = [paired(one.accuracies, other.accuracies, MARGIN) for one, other in arms]
    different, equivalent = holm([row.different for row in rows]), holm([row.equivalent for row in rows])
    findings = []
    for (regime, _, _, statement, sign), some, row, p, same in zip(asked, arms, rows, different, equivalent, strict=True):
        shown = p < 0.05 and row.mean * sign > 0
        small = shown_small(Verdict.CONFIRMED if same < 0.05 else Verdict.INCONCLUSIVE)
        verdict = Verdict.CONFIRMED if shown else small
        findings.append(Finding(statement, verdict, difference(row, p, verdict, some), _conditions(regime, found[regime])))
    return findings
