"""Trainings with flash attention whose output is rounded with a bias or without."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

import fpsim
from experiments.answer import Answer, Finding, Table, Verdict, number
from experiments.claims.blowup.task import Conditions, Head
from experiments.comparison import arms_of
from experiments.draws import Draws, digest
from experiments.metrics import rounded
from experiments.models.flash import Flash, FlashAttention
from experiments.runs import Record
from experiments.statistics import paired
from experiments.training import Trainer, Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ON, OFF, CURE, GPT = "bf16", "fp32", "bf16, shifted maximum", "GPT: "
INTERVENTIONS = (
    CURE, "bf16, output in fp32", "bf16, stochastic rounding of the output", "bf16, V of both signs", "bf16, one maximum",
)  # fmt: skip
AWAY, STILL = 10.0, 2.0  # times the largest singular value at first: the weights ran away, or did not


def measure(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What became of the loss and of the largest singular value of W_Q and W_K, and what the attention noticed."""
    task = _gpt if configuration["arm"].startswith(GPT) else _constructed
    return task(configuration["seed"], Flash(**configuration["attention"]), configuration)


def _constructed(seed: int, where: Flash, configuration: Mapping[str, Any]) -> dict[str, Any]:
    conditions, given = Conditions(**configuration.get("conditions", {})), configuration["constructed"]
    simulation = fpsim.run(Head(FlashAttention(where, seed)), fmt="fp32")
    optimizer = torch.optim.SGD(simulation.parameters(), lr=given["lr"])
    first, losses, grown = _largest(simulation), [], [1.0]
    with simulation:
        for step in range(given["steps"]):
            queries, keys, v = conditions.batch(Draws(seed, f"blowup {step}"))
            loss = (simulation(queries, keys, v) - 1).square().sum(-1).mean() / 2  # its gradient is negative: V is below 1
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if (step + 1) % given["every"] == 0:
                grown.append(_largest(simulation) / first)
    held = [tensor.detach().numpy() for tensor in simulation.state_dict().values()]
    return _noticed(simulation) | {
        "grown": [rounded(value) for value in grown], "loss": rounded(math.fsum(losses[-20:]) / len(losses[-20:])),
        "stable": bool(np.isfinite(losses).all() and np.isfinite(grown).all()), "digest": digest(*held),
    }  # fmt: skip


def _gpt(seed: int, where: Flash, configuration: Mapping[str, Any]) -> dict[str, Any]:
    trainer = Trainer(replace(Training.of({**configuration["gpt"], "seed": seed}), attention=where))
    first = _largest(trainer.simulation)
    while trainer.epoch < trainer.training.epochs:
        trainer.run_epoch()
    return trainer.result() | _noticed(trainer.simulation) | {"grown": [1.0, rounded(_largest(trainer.simulation) / first)]}


def _largest(model: nn.Module) -> float:
    """The largest singular value of any matrix that makes queries or keys; infinite where an element is not finite."""
    found: list[torch.Tensor] = []
    for name, weight in model.named_parameters():
        if name.endswith(("query.weight", "key.weight")):
            found.append(weight.detach())
        elif name.endswith("mixing.weight"):
            found += weight.detach().chunk(3)[:2]
    if not all(bool(torch.isfinite(weight).all()) for weight in found):
        return math.inf
    return max(float(np.linalg.norm(weight.double().numpy(), 2)) for weight in found)


def _noticed(model: nn.Module) -> dict[str, Any]:
    attention = next(module for module in model.modules() if isinstance(module, FlashAttention))
    mean = math.fsum(attention.errors) / len(attention.errors) if attention.errors else 0.0
    return {"rows": attention.rows, "repeated": attention.repeated, "error": number(float(f"{mean:.3g}"))}


def judge(records: Sequence[Record]) -> Answer:
    arms = {name: arm.records for name, arm in arms_of(records).items()}
    on, off = _grown(arms[ON]), _grown(arms[OFF])
    findings = [
        Finding(
            "two equal maxima and V of one sign: W_Q and W_K run away in bf16",
            _all(min(on) >= AWAY and max(off) < STILL, max(on) < STILL), f"{_said(arms[ON])}; fp32: {_said(arms[OFF])}", TASK,
        )
    ]  # fmt: skip
    for name in INTERVENTIONS:
        grown = _grown(arms[name])
        verdict = _all(max(grown) < STILL, min(grown) >= AWAY)
        findings.append(Finding(f"{name.partition(', ')[2]}: they do not", verdict, _said(arms[name]), TASK))
    losses = {name: np.mean(_of(arms[name], "loss")) for name in (ON, OFF)}
    ratio = losses[ON] / losses[OFF]
    findings.append(
        Finding(
            "and the loss blows up", _all(bool(ratio > 2), bool(ratio < 1.1)),
            f"{losses[ON]:.4g}, fp32 {losses[OFF]:.4g}: the output is a mean of V whatever the weights are", TASK,
        )
    )  # fmt: skip
    findings += _of_gpt(arms)
    columns = (
        "arm",
        "largest singular value, times that at first",
        "loss",
        "unstable",
        "rows whose maximum stands twice",
        ERROR,
    )
    rows = [
        (name, ", ".join(f"{value:.3g}" for value in _grown(some)), f"{np.mean(_of(some, 'loss')):.4g}",
         f"{sum(not record.result['stable'] for record in some)} of {len(some)}",
         f"{sum(_of(some, 'repeated')) / sum(_of(some, 'rows')):.1%}", f"{np.mean(_of(some, 'error')):+.4f}")
        for name, some in arms.items()
    ]  # fmt: skip
    summary = f"largest singular value of W_Q, W_K, times that at first: bf16 {np.mean(on):.3g}, fp32 {np.mean(off):.3g}, " + (
        ", ".join(f"{name.partition(', ')[2]} {np.mean(_grown(arms[name])):.3g}" for name in INTERVENTIONS)
    )
    return Answer(summary, findings, (Table("A value a seed:", columns, rows),), lambda figure: _draw(figure, arms), (NOTE,))


ERROR = "mean error of P V, ulp"
NOTE = "With V of both signs there is something to learn, V above 0: that the singular value falls there is not of rounding."
TASK = "constructed task, SGD, V drawn anew every step"


def _of_gpt(arms: Mapping[str, Sequence[Record]]) -> list[Finding]:
    on, off = (arms[GPT + name] for name in (ON, OFF))
    unstable = sum(not record.result["stable"] for record in on)
    ratio = np.divide(_grown(on), _grown(off))
    verdict = Verdict.CONFIRMED if unstable or ratio.max() >= AWAY else Verdict.INCONCLUSIVE
    loss = paired(_of(on, "test_loss"), _of(off, "test_loss"), 1.0)
    statistic = (
        f"{unstable} of {len(on)} unstable; singular value {ratio.mean():.4f} times that of fp32; test loss {loss.mean:+.5f} "
        f"[{loss.low:+.5f}, {loss.high:+.5f}]; {sum(_of(on, 'repeated')) / sum(_of(on, 'rows')):.2%} of rows have the maximum "
        f"twice, P V errs by {np.mean(_of(on, 'error')):+.4f} ulp"
    )
    steps = on[0].result["steps"]
    if verdict is Verdict.INCONCLUSIVE:
        statistic += f"; not reached in {steps} steps, the source's fail after thousands"
    return [
        Finding("a character GPT's training blows up in bf16", verdict, statistic, f"topics, one layer, Adam, {steps} steps")
    ]


def _all(confirmed: bool, refuted: bool) -> Verdict:
    return Verdict.CONFIRMED if confirmed else Verdict.REFUTED if refuted else Verdict.INCONCLUSIVE


def _of(records: Sequence[Record], name: str) -> list[float]:
    return [float(record.result[name]) for record in records]


def _grown(records: Sequence[Record]) -> list[float]:
    return [float(record.result["grown"][-1]) for record in records]


def _said(records: Sequence[Record]) -> str:
    grown, errors = _grown(records), _of(records, "error")
    return (
        f"{min(grown):.3g} to {max(grown):.3g} times the largest singular value at first, {len(grown)} seeds; "
        f"P V errs by {np.mean(errors):+.4f} ulp"
    )


def _draw(figure: Figure, arms: Mapping[str, Sequence[Record]]) -> None:
    axes = figure.subplots()
    shown = [ON, OFF, *INTERVENTIONS]
    for color, name in enumerate(shown):
        for place, record in enumerate(arms[name]):
            given, grown = record.run.configuration["constructed"], np.array(record.result["grown"], np.float64)
            axes.plot(
                given["every"] * np.arange(len(grown)), grown, color=f"C{color}", lw=0.8, label=name if place == 0 else None
            )
    axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="largest singular value,\ntimes that at first")
    axes.legend(fontsize=7)
