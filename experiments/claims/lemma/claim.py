"""Tolerances and certificates of trained networks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

import fpsim
from experiments.answer import Answer, Finding, Table, Verdict
from experiments.data import load
from experiments.metrics import rounded
from experiments.models import build
from experiments.runs import Record
from experiments.training import Training, trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def measure(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Counts over the test inputs for logits and probabilities, and what the certificate says of a cast."""
    given = dict(configuration)
    apart = given.pop("apart")
    asked = Training.of(given)
    single = model_of(asked, trained(replace(asked, fmt="fp32", accumulate="fp32")))
    half = model_of(asked, trained(asked)) if apart else single
    data = load(asked.data)
    inputs, targets = torch.tensor(data.test_inputs), torch.tensor(data.test_targets)
    result: dict[str, Any] = {}
    for kind, ending in (("logits", nn.Identity()), ("probabilities", nn.Softmax(-1))):
        pair = [
            fpsim.run(nn.Sequential(model, ending).eval(), fmt, accumulate)
            for model, fmt, accumulate in ((single, "fp32", "fp32"), (half, asked.fmt, asked.accumulate))
        ]
        result[kind] = _counts(fpsim.tolerance(*pair, [(inputs, targets)]))
    return result if apart else {**result, "certificate": _certified(single, inputs, asked)}


def model_of(asked: Training, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """The model with trained weights, in evaluation."""
    model = build(asked.model, asked.seed)
    model.load_state_dict(state)
    return model.eval()


def _counts(found: fpsim.Tolerance) -> dict[str, Any]:
    assert found.correct is not None
    first, second = (int(part.sum()) for part in found.correct)
    return {
        "inputs": len(found.delta), "agree": int(found.agree.sum()), "covered": int(found.covered.sum()),
        "violated": int((found.covered & ~found.agree).sum()), "correct32": first, "correct16": second,
        "delta": rounded(float(found.delta.mean())), "largest_delta": rounded(float(found.delta.max())),
        "gamma": rounded(float(found.gamma.mean())),
    }  # fmt: skip


def _certified(model: nn.Module, inputs: torch.Tensor, asked: Training) -> dict[str, Any]:
    certificate = fpsim.certify(model, inputs, asked.fmt, asked.accumulate)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(inputs.double())
    error = (certificate.logits.double() - exact).abs()
    classes = certificate.predicted == exact.argmax(1)
    finite = torch.isfinite(certificate.bound)
    ratio = (error / certificate.bound)[finite]
    return {
        "certified": int(certificate.certified.sum()), "wrong": int((certificate.certified & ~classes).sum()),
        "beyond": int((error > certificate.bound).sum()), "logits": error.numel(), "unbounded": int((~finite).sum()),
        "ratio": rounded(float(ratio.max())) if len(ratio) else "none", "bound": rounded(float(certificate.bound.mean())),
        "error": rounded(float(error.mean())),
    }  # fmt: skip


KINDS = ("logits", "probabilities")


def judge(records: Sequence[Record]) -> Answer:
    pairs = [(record, kind, record.result[kind]) for record in records for kind in KINDS]
    inputs = sum(row["inputs"] for _, _, row in pairs)
    violated = sum(row["violated"] for _, _, row in pairs)
    broken = [
        record.run.key for record, _, row in pairs
        if row["agree"] < row["covered"] or abs(row["correct32"] - row["correct16"]) > row["inputs"] - row["agree"]
    ]  # fmt: skip
    certificates = [record.result["certificate"] for record in records if "certificate" in record.result]
    beyond, wrong, logits = (sum(row[name] for row in certificates) for name in ("beyond", "wrong", "logits"))
    ratio = max(float(row["ratio"]) for row in certificates if row["ratio"] != "none")
    same = "digits, 64-64-10 with batch norm, casts and networks trained apart"
    findings = (
        Finding("Gamma > 2 delta implies the same class", _holds(not violated),
                f"{violated} of {inputs} pairs of outputs violate it", same),
        Finding("Gamma >= 2 delta implies it as well", _holds(not _tie_differs()),
                "M32 = (.375, .625), M16 = (.5, .5): Gamma = 2 delta = .25, classes 1 and 0", "exact, first largest"),
        Finding("A >= C and |difference of accuracies| <= 1 - A", _holds(not broken),
                f"broken by {len(broken)} of {len(pairs)} pairs", same),
        Finding("certified bounds contain the error of every logit", _holds(not beyond),
                f"{beyond} of {logits} beyond; worst ratio {ratio:.3g}", "casts, against a float64 model"),
        Finding("certified classes are those of the exact model", _holds(not wrong),
                f"{wrong} of {sum(row['certified'] for row in certificates)} differ", "casts, against a float64 model"),
    )  # fmt: skip
    rows = _rows(records)
    five = [row for row in rows if row[0] == "fp16 cast" and row[2] == "logits"][-1]
    summary = f"no violation in {inputs} pairs" if not violated else f"{violated} violations"
    summary += f"; fp16 cast after {five[1]} epochs: C = {five[3]}, A = {five[4]}, certified {five[7]}"
    columns = ("M16", "epochs", "on", "C", "A", "mean delta", "mean Gamma", "certified", "accuracy 16 - 32, points")
    table = Table("Shares over all seeds and inputs:", columns, rows)
    return Answer(summary, findings, (table,), lambda figure: _draw(figure, records))


def _rows(records: Sequence[Record]) -> list[tuple[Any, ...]]:
    cells: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        cells.setdefault((record.run.arm, record.run.configuration["epochs"]), []).append(record)
    rows = []
    for (arm, epochs), some in cells.items():
        for kind in KINDS:
            found = [record.result[kind] for record in some]
            total = sum(row["inputs"] for row in found)
            certified = [record.result["certificate"]["certified"] for record in some if "certificate" in record.result]
            gain = 100 * sum(row["correct16"] - row["correct32"] for row in found) / total
            rows.append(
                (arm, epochs, kind, *(f"{sum(row[name] for row in found) / total:.2%}" for name in ("covered", "agree")),
                 *(float(np.mean([float(row[name]) for row in found])) for name in ("delta", "gamma")),
                 f"{sum(certified) / total:.2%}" if certified and kind == "logits" else "", f"{gain:+.2f}")
            )  # fmt: skip
    return rows


def _holds(true: bool) -> Verdict:
    return Verdict.CONFIRMED if true else Verdict.REFUTED


def _tie_differs() -> bool:
    """Whether two outputs with Gamma = 2 delta have other classes."""
    single, half = np.array([0.375, 0.625]), np.array([0.5, 0.5])
    gamma, delta = abs(single[1] - single[0]), np.abs(single - half).max()
    return bool(gamma >= 2 * delta) and int(single.argmax()) != int(half.argmax())


def _draw(figure: Figure, records: Sequence[Record]) -> None:
    rows = [row for row in _rows(records) if row[2] == "logits"]
    axes = figure.subplots()
    names = [f"{row[0]}, {row[1]} epoch{'s' * (row[1] > 1)}" for row in rows]
    places = np.arange(len(rows))
    for shift, column, label in ((-0.25, 4, "same class (A)"), (0, 3, "Gamma > 2 delta (C)"), (0.25, 7, "certified")):
        values = [float(row[column].rstrip("%")) if row[column] else 0.0 for row in rows]
        axes.barh(places + shift, values, 0.23, label=label)
    axes.set_yticks(places, names, fontsize=7)
    axes.set_xlabel("% of inputs")
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right center")
