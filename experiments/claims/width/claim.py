"""How far casts of wider and wider networks are from the network."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import fpsim
from experiments.answer import Answer, Finding, Table, Verdict
from experiments.claims.lemma.claim import model_of
from experiments.data import load
from experiments.metrics import rounded
from experiments.runs import Record
from experiments.statistics import Paired, holm, paired
from experiments.training import Training, trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEAR = 4  # times u
SMALL = 1.5  # no growth to speak of


def measure(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """delta over the largest logit, and the certificate's bound against a float64 model."""
    given = dict(configuration)
    count = given.pop("inputs")
    asked = Training.of(given)
    model = model_of(asked, trained(replace(asked, fmt="fp32", accumulate="fp32")))
    inputs = torch.tensor(load(asked.data).test_inputs[:count])
    certificate = fpsim.certify(model, inputs, asked.fmt, asked.accumulate)
    single, cast = (fpsim.run(model, *arms) for arms in (("fp32", "fp32"), (asked.fmt, asked.accumulate)))
    with torch.no_grad():
        with single:
            wide = single(inputs).double()
        with cast:
            narrow = cast(inputs).double()
        exact = copy.deepcopy(model).double()(inputs.double())
    delta, largest = (part.abs().amax(1).numpy() for part in (narrow - wide, wide))
    error = (certificate.logits.double() - exact).abs()
    finite = torch.isfinite(certificate.bound)
    ratio = (error / certificate.bound)[finite]
    return {
        "delta": rounded(math.fsum(delta / largest) / count), "logits": error.numel(), "unbounded": int((~finite).sum()),
        "beyond": int((error > certificate.bound).sum()), "ratio": rounded(float(ratio.max())) if len(ratio) else "none",
    }  # fmt: skip


def judge(records: Sequence[Record]) -> Answer:
    deltas: dict[str, dict[int, list[float]]] = {}
    for record in records:
        width = int(record.run.configuration["model"].removeprefix("mlp"))
        deltas.setdefault(record.run.arm, {}).setdefault(width, []).append(record.result["delta"])
    growth = {arm: _growth(of) for arm, of in deltas.items()}
    tests = dict(zip(growth, holm([row.different for row in growth.values()]), strict=True))
    widths = sorted(next(iter(deltas.values())))
    conditions = f"digits, 64-w-w-10, w = {widths[0]} to {widths[-1]}, {next(iter(growth.values())).count} seeds"
    findings = [_finding(arm, deltas[arm], growth[arm], tests[arm], conditions) for arm in deltas if "blocks" not in arm]
    beyond, logits, unbounded = (sum(record.result[name] for record in records) for name in ("beyond", "logits", "unbounded"))
    worst = max(float(record.result["ratio"]) for record in records if record.result["ratio"] != "none")
    findings.append(
        Finding(
            "certified bounds contain the error of every logit", Verdict.REFUTED if beyond else Verdict.CONFIRMED,
            f"{beyond} of {logits} beyond, {unbounded} without a bound; worst ratio {worst:.3g}", conditions,
        )
    )  # fmt: skip
    rows = [
        (arm, *(f"{np.mean(of[width]) / _roundoff(arm):.3g}" for width in widths), _said(growth[arm]), f"{tests[arm]:.2g}")
        for arm, of in deltas.items()
    ]
    columns = ("arm", *(f"w = {width}" for width in widths), "growth, 95 %", "p (Holm)")
    table = Table("delta over the largest logit, in units of u:", columns, rows)
    summary = f"delta from w = {widths[0]} to {widths[-1]} grows " + ", ".join(
        f"{2**row.mean:.2g}-fold ({arm})" for arm, row in growth.items()
    )
    return Answer(summary, findings, (table,), lambda figure: _draw(figure, deltas))


def _growth(of: Mapping[int, Sequence[float]]) -> Paired:
    """The binary logarithm of the ratio from the least width to the largest."""
    return paired(np.log2(of[max(of)]).tolist(), np.log2(of[min(of)]).tolist(), 1.0)


def _said(row: Paired) -> str:
    return f"{2**row.mean:.2f} [{2**row.low:.2f}, {2**row.high:.2f}]"


def _roundoff(arm: str) -> float:
    return 2.0 ** -fpsim.get_format(arm.partition(" ")[0]).precision


def _finding(arm: str, of: Mapping[int, Sequence[float]], row: Paired, p: float, conditions: str) -> Finding:
    means = [float(np.mean(some)) / _roundoff(arm) for some in of.values()]
    if arm.endswith("fp32"):
        near = [mean < NEAR for mean in means]
        verdict = Verdict.CONFIRMED if all(near) else Verdict.INCONCLUSIVE if any(near) else Verdict.REFUTED
        return Finding(f"{arm}: delta stays below {NEAR} u", verdict, f"{min(means):.2g} to {max(means):.2g} u", conditions)
    verdict = Verdict.REFUTED if 2**row.high < SMALL else Verdict.INCONCLUSIVE
    if p < 0.05 and row.mean > 0:
        verdict = Verdict.CONFIRMED
    return Finding(f"{arm}: delta grows with the width", verdict, f"{_said(row)} times, p = {p:.2g} (Holm)", conditions)


def _draw(figure: Figure, deltas: Mapping[str, Mapping[int, Sequence[float]]]) -> None:
    axes = figure.subplots()
    for arm, of in deltas.items():
        widths = sorted(of)
        axes.plot(widths, [np.mean(of[width]) for width in widths], "o-", ms=3, label=arm)
    axes.set(xscale="log", yscale="log", xlabel="width", ylabel="delta / largest logit")
    axes.legend(fontsize=7)
