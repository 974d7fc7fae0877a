"""Whether 16 bits are better, from the runs of the claim on parity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from experiments.answer import Answer, Finding, Table, Verdict
from experiments.comparison import Arm, arms_of
from experiments.runs import Record
from experiments.statistics import holm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("fp16 sums fp16", "bf16 sums bf16")
SMALLEST = 0.1  # points: less is of no account


def judge(records: Sequence[Record]) -> Answer:
    arms = arms_of(records)
    fp32 = arms["fp32"]
    gains = {name: np.subtract(arms[name].accuracies, fp32.accuracies) for name in ARMS}
    losses = {name: np.subtract(_losses(fp32), _losses(arms[name])) for name in ARMS}
    corrected = holm([_better(some) for found in (gains, losses) for some in found.values()])
    findings, rows = [], []
    for place, name in enumerate(ARMS):
        gain, p, of_loss = gains[name], corrected[place], corrected[place + len(ARMS)]
        most = _most(gain)
        verdict = Verdict.CONFIRMED if p < 0.05 else Verdict.REFUTED if most < SMALLEST else Verdict.INCONCLUSIVE
        statistic = f"{gain.mean():+.3f} points, p = {p:.2g} (Holm), at most {most:+.3f} with 95 %"
        if verdict is Verdict.INCONCLUSIVE:
            statistic += f"; about {_seeds(gain)} seeds would show {SMALLEST} points, {_hours(fp32, arms[name], gain):.2g} h"
        statistic += f"; test loss better by {losses[name].mean():+.2g}, p = {of_loss:.2g}"
        findings.append(Finding(f"{name}: a higher accuracy than fp32", verdict, statistic, f"{len(gain)} paired seeds"))
        counts = [int(np.count_nonzero(test)) for test in (gain > 0, gain == 0, gain < 0)]
        rows.append((name, *counts, f"{gain.mean():+.3f}", f"{gain.std(ddof=1):.3f}"))
    summary = ", ".join(f"{name} {gains[name].mean():+.3f} points" for name in ARMS)
    table = Table("Seeds by who is better:", ("arm", "16 bits", "neither", "fp32", "mean, points", "deviation"), rows)
    return Answer(summary, findings, (table,), lambda figure: _draw(figure, gains))


def _losses(arm: Arm) -> list[float]:
    return [float(record.result["test_loss"]) for record in arm.records]


def _better(differences: np.ndarray) -> float:
    """p of the one-sided test that the mean is positive."""
    if differences.std() == 0:
        return 0.0 if differences.mean() > 0 else 1.0
    return float(stats.ttest_1samp(differences, 0.0, alternative="greater").pvalue)


def _most(differences: np.ndarray) -> float:
    """The upper end of the one-sided 95 % interval of the mean."""
    count = len(differences)
    return float(differences.mean() + stats.t(count - 1).ppf(0.95) * differences.std(ddof=1) / math.sqrt(count))


def _seeds(differences: np.ndarray) -> int:
    needed = differences.std(ddof=1) * (stats.norm.ppf(0.95) + stats.norm.ppf(0.8)) / SMALLEST
    return math.ceil(needed**2) + 1


def _hours(one: Arm, other: Arm, differences: np.ndarray) -> float:
    each = sum(record.seconds for arm in (one, other) for record in arm.records) / len(one.records)
    return each * _seeds(differences) / 3600


def _draw(figure: Figure, gains: dict[str, np.ndarray]) -> None:
    axes = figure.subplots(1, len(gains), sharey=True)
    for panel, (name, gain) in zip(axes, gains.items(), strict=True):
        panel.hist(gain, bins=np.arange(-2, 2.01, 1 / 6) - 1 / 12, color="#2166ac")
        panel.axvline(0, color="0.3", lw=0.8)
        panel.set(title=name, xlabel="accuracy minus fp32's, points")
    axes[0].set_ylabel("seeds")
