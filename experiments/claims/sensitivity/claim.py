"""Differences from fp32 over a grid of learning rates and amounts of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from experiments.answer import Answer, Finding, Table, Verdict
from experiments.runs import Record
from experiments.statistics import holm
from experiments.training import train as measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["judge", "measure"]

Cells = Mapping[tuple[str, float, int], np.ndarray]
ARMS = ("fp16", "bf16")


def judge(records: Sequence[Record]) -> Answer:
    cells = _cells(records)
    rates, sizes = (sorted({key[place] for key in cells}) for place in (1, 2))
    tests: dict[tuple[str, str], float] = {}
    for arm in ARMS:
        gaps = {(rate, size): cells[arm, rate, size] - cells["fp32", rate, size] for rate in rates for size in sizes}
        by_rate = [np.concatenate([gaps[rate, size] for size in sizes]) for rate in rates]
        by_size = [np.concatenate([gaps[rate, size] for rate in rates]) for size in sizes]
        tests[arm, "the learning rate"] = _p(stats.kruskal, by_rate)
        tests[arm, "the amount of data"] = _p(stats.mannwhitneyu, by_size)
        tests[arm, "the seed, more than fp32 does,"] = _p(stats.levene, [_spread(cells, name) for name in (arm, "fp32")])
    corrected = dict(zip(tests, holm(list(tests.values())), strict=True))
    findings = []
    for (arm, on), p in corrected.items():
        statistic = f"p = {p:.2g} (Holm)"
        if "seed" in on:
            widths = [_spread(cells, name).std(ddof=1) for name in (arm, "fp32", "fp32, one ulp off")]
            statistic += "; deviation over seeds {:.2f} points, fp32 {:.2f}, the null {:.2f}".format(*widths)
            wider = widths[0] > widths[1]
        else:
            wider = True
        verdict = Verdict.CONFIRMED if p < 0.05 and wider else Verdict.INCONCLUSIVE
        subject = "accuracy" if "seed" in on else "difference from fp32"
        findings.append(
            Finding(f"{arm}: {on} changes the {subject}", verdict, statistic, f"grid of {len(rates)} x {len(sizes)}")
        )
    findings.append(_unstable(records))
    rows = [
        (arm, rate, size or "all", f"{values.mean():.2f}", f"{values.std(ddof=1):.2f}",
         "" if arm == "fp32" else f"{(values - cells['fp32', rate, size]).mean():+.2f}")
        for (arm, rate, size), values in cells.items()
    ]  # fmt: skip
    table = Table("Accuracy in percent:", ("arm", "learning rate", "images", "mean", "deviation", "minus fp32"), rows)
    shown = [f"{arm} by {on.split(',')[0].removeprefix('the ')}" for (arm, on), p in corrected.items() if p < 0.05]
    return Answer(
        "shown: " + (", ".join(shown) or "none of the six dependences"), findings, (table,),
        lambda figure: _draw(figure, cells, rates, sizes),
    )  # fmt: skip


def _cells(records: Sequence[Record]) -> Cells:
    found: dict[tuple[str, float, int], list[tuple[int, float]]] = {}
    for record in records:
        given, result = record.run.configuration, record.result
        key = (given["arm"], given["lr"], given["limit"])
        found.setdefault(key, []).append((given["seed"], 100 * result["correct"] / result["of"]))
    return {key: np.array([value for _, value in sorted(some)]) for key, some in found.items()}


def _spread(cells: Cells, arm: str) -> np.ndarray:
    """Accuracies less the mean of their cell."""
    return np.concatenate([values - values.mean() for key, values in cells.items() if key[0] == arm])


def _p(test: object, samples: Sequence[np.ndarray]) -> float:
    """1 where nothing differs at all."""
    if all((sample == samples[0].flat[0]).all() for sample in samples):
        return 1.0
    return float(test(*samples).pvalue)  # type: ignore[operator]


def _unstable(records: Sequence[Record]) -> Finding:
    unstable: dict[str, int] = {}
    for record in records:
        unstable[record.run.arm] = unstable.get(record.run.arm, 0) + (not record.result["stable"])
    worse = any(unstable[arm] > unstable["fp32"] for arm in ARMS)
    return Finding(
        "16-bit runs become unstable where fp32 runs do not", Verdict.CONFIRMED if worse else Verdict.REFUTED,
        ", ".join(f"{arm}: {count}" for arm, count in unstable.items()) + f" unstable of {len(records) // len(unstable)} each",
        "no clipping, no warm-up",
    )  # fmt: skip


def _draw(figure: Figure, cells: Cells, rates: Sequence[float], sizes: Sequence[int]) -> None:
    axes = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for panel, size in zip(axes, sizes, strict=True):
        for place, arm in enumerate(("fp32, one ulp off", *ARMS)):
            gaps = [cells[arm, rate, size] - cells["fp32", rate, size] for rate in rates]
            positions = np.arange(len(rates)) + 0.25 * (place - 1)
            for position, gap in zip(positions, gaps, strict=True):
                panel.plot(np.full(len(gap), position), gap, ".", color=("0.5", "#2166ac", "#b2182b")[place], alpha=0.6)
            panel.plot([], [], ".", color=("0.5", "#2166ac", "#b2182b")[place], label=arm)
        panel.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        panel.set(title=f"{size or 'all'} images", xlabel="learning rate")
    axes[0].set_ylabel("accuracy minus fp32's, points")
    axes[0].legend(fontsize=8, frameon=False)
