"""Bits and classes under other orders of sums and other batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import stats
from torch import nn

import fpsim
from experiments.answer import Answer, Finding, Table, Verdict
from experiments.claims.lemma.claim import model_of
from experiments.data import load
from experiments.runs import Record
from experiments.statistics import holm
from experiments.training import Training, trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ORDERS = ("pairwise", "blocked(32)", "lanes(8)", "split(4)")
BATCHES = (1, 7, 64)


def measure(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """How many logits and classes of the test data differ from those of sequential sums over all of it at once."""
    given = dict(configuration)
    library = given.pop("library")
    asked = Training.of(given)
    model = model_of(asked, trained(replace(asked, fmt="fp32", accumulate="fp32")))
    inputs = torch.tensor(load(asked.data).test_inputs)
    if library:
        dtype = getattr(torch, library)
        return {"inputs": len(inputs), "batches": _batches(model.to(dtype), inputs.to(dtype))}
    simulation = fpsim.run(model, asked.fmt, asked.accumulate)
    first = outputs(simulation, inputs, len(inputs))
    result: dict[str, Any] = {"inputs": len(inputs), "batches": _batches(simulation, inputs)}
    result["orders"] = {
        order: differ(first, outputs(fpsim.run(model, asked.fmt, f"{asked.accumulate}:{order}"), inputs, len(inputs)))
        for order in ORDERS
    }
    other = replace(asked, accumulate=f"{asked.accumulate}:pairwise")
    apart = [
        outputs(fpsim.run(model_of(asked, trained(one)), one.fmt, one.accumulate), inputs, len(inputs))
        for one in (asked, other)
    ]
    return {**result, "trained": differ(*apart)}


def _batches(model: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> dict[str, dict[str, int]]:
    first = outputs(model, inputs, len(inputs))
    return {str(batch): differ(first, outputs(model, inputs, batch)) for batch in BATCHES}


def outputs(model: nn.Module | Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, batch: int) -> np.ndarray:
    """Logits in float64, computed in batches."""
    with torch.no_grad():
        return torch.cat([model(part).double() for part in inputs.split(batch)]).numpy()


def differ(a: np.ndarray, b: np.ndarray) -> dict[str, int]:
    return {"logits": int(np.count_nonzero(a != b)), "classes": int(np.count_nonzero(a.argmax(1) != b.argmax(1)))}


def judge(records: Sequence[Record]) -> Answer:
    arms: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        arms.setdefault(record.run.arm, []).append(record.result)
    emulated = {name: rows for name, rows in arms.items() if "orders" in rows[0]}
    changed = sum(row["batches"][batch]["logits"] for rows in emulated.values() for row in rows for batch in row["batches"])
    compared = sum(10 * row["inputs"] * len(BATCHES) for rows in emulated.values() for row in rows)
    verdict = Verdict.REFUTED if changed else Verdict.CONFIRMED
    findings = [
        Finding("with a fixed order the batch size changes no bit", verdict, f"{changed} of {compared} logits differ",
                f"batches of {', '.join(map(str, BATCHES))} against all"),
        *_costs(emulated),
    ]  # fmt: skip
    rows = []
    for name, some in arms.items():
        logits = 10 * sum(row["inputs"] for row in some)
        for kind in ("batches", "orders", "trained"):
            if kind in some[0]:
                cases = {"pairwise": None} if kind == "trained" else some[0][kind]
                for case in cases:
                    found = [row[kind] if kind == "trained" else row[kind][case] for row in some]
                    shown = {"batches": f"batch of {case}", "orders": case, "trained": "trained apart, pairwise"}[kind]
                    shares = [sum(row[what] for row in found) for what in ("logits", "classes")]
                    rows.append((name, shown, f"{shares[0] / logits:.2%}", f"{10 * shares[1] / logits:.2%}"))
    table = Table(
        "Shares that differ from sequential sums over all inputs at once:", ("arithmetic", "against", "logits", "classes"), rows
    )
    summary = f"{changed} logits depend on the batch under a fixed order; other orders change " + ", ".join(
        f"{_share(emulated[name]):.2%} of classes ({name})" for name in emulated
    )
    return Answer(summary, findings, (table,), lambda figure: _draw(figure, emulated))


def _counts(rows: Sequence[Mapping[str, Any]], kind: str) -> list[int]:
    """Classes that differ, by seed: under all orders, or between networks trained apart."""
    if kind == "trained":
        return [row["trained"]["classes"] for row in rows]
    return [sum(found["classes"] for found in row["orders"].values()) for row in rows]


def _share(rows: Sequence[Mapping[str, Any]]) -> float:
    return sum(_counts(rows, "orders")) / (len(ORDERS) * sum(row["inputs"] for row in rows))


def _costs(emulated: Mapping[str, list[dict[str, Any]]]) -> list[Finding]:
    cases = [(fmt, kind) for fmt in ("fp16", "bf16") for kind in ("orders", "trained")]
    tests, counts = [], []
    for fmt, kind in cases:
        narrow, wide = (_counts(emulated[f"{fmt} sums {accumulator}"], kind) for accumulator in (fmt, "fp32"))
        counts.append((narrow, wide))
        tests.append(1.0 if narrow == wide else float(stats.wilcoxon(narrow, wide, alternative="greater").pvalue))
    found = []
    for (fmt, kind), (narrow, wide), p in zip(cases, counts, holm(tests), strict=True):
        shown = Verdict.CONFIRMED if p < 0.05 else Verdict.INCONCLUSIVE
        who = "a cast network" if kind == "orders" else "networks trained in two orders"
        found.append(
            Finding(
                f"{fmt}: {who} change{'s' * (kind == 'orders')} more classes with a {fmt} accumulator than with fp32", shown,
                f"{sum(narrow)} against {sum(wide)} classes, p = {p:.2g} (Wilcoxon, Holm)", f"{len(narrow)} paired seeds",
            )
        )  # fmt: skip
    return found


def _draw(figure: Figure, emulated: Mapping[str, list[dict[str, Any]]]) -> None:
    axes = figure.subplots(1, 2)
    for panel, what in zip(axes, ("logits", "classes"), strict=True):
        for place, (name, rows) in enumerate(emulated.items()):
            total = sum(row["inputs"] for row in rows) * (10 if what == "logits" else 1)
            shares = [100 * sum(row["orders"][order][what] for row in rows) / total for order in ORDERS]
            panel.bar(np.arange(len(ORDERS)) + 0.2 * (place - 1.5), shares, 0.18, label=name)
        panel.set_xticks(range(len(ORDERS)), ORDERS, fontsize=8)
        panel.set(title=f"{what} that differ from sequential sums", ylabel="%")
    axes[1].legend(fontsize=8, frameon=False)
