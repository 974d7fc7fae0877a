"""The signed rounding error of P V in bf16, with the conditions of its bias turned on and off."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

import fpsim
from experiments.answer import Answer, Finding, Table, Verdict
from experiments.draws import Draws
from experiments.runs import Record
from experiments.statistics import holm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ON, POSITIVE = "two maxima, V negative", "two maxima, V positive"
INTERVENTIONS = ("one maximum", "V of both signs", "shifted maximum", "stochastic rounding of the output")


def measure(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The mean signed error in units in the last place, and how many outputs were rounded up and down."""
    rows, columns, keys = (configuration[name] for name in ("rows", "columns", "keys"))
    seed, rounding = configuration["seed"], configuration["rounding"]
    draws = Draws(seed, "attention")
    near, far = configuration["below"]
    scores = -near - (far - near) * draws.uniform(rows, keys)
    scores[:, : configuration["maxima"]] = 0.0
    p = fpsim.exp(fpsim.round((scores - configuration["shift"]).astype(np.float32), "bf16"), fmt="bf16")
    v = fpsim.round((values(draws, configuration, keys, columns)).astype(np.float32), "bf16")
    drawn = seed if rounding == "stochastic" else None
    wide = fpsim.matmul(p, v, fmt="fp32", accumulate="fp32")  # exact products in an fp32 chain, as tensor cores have it
    found = fpsim.round(wide, "bf16", rounding=rounding, seed=drawn)
    error = (found.astype(np.float64) - wide) / fpsim.ulp(found, "bf16").astype(np.float64)
    ties = np.abs(error) == 0.5
    return {
        "mean": float(f"{math.fsum(error.ravel()) / error.size:.6g}"), "outputs": error.size,
        "up": int(np.count_nonzero(error > 0)), "down": int(np.count_nonzero(error < 0)), "ties": int(np.count_nonzero(ties)),
    }  # fmt: skip


def values(draws: Draws, configuration: Mapping[str, Any], keys: int, columns: int) -> np.ndarray:
    """V of the magnitudes and signs that are asked for."""
    low, high = configuration["magnitudes"]
    size = low + (high - low) * draws.uniform(keys, columns)
    sign = np.where(draws.uniform(keys, columns) < 0.5, -1.0, 1.0)
    return size * {"negative": -1.0, "positive": 1.0, "both": sign}[configuration["sign"]]


def judge(records: Sequence[Record]) -> Answer:
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        given = record.run.configuration
        where = "|V| in [{:g}, {:g}), others {:g} to {:g} below".format(*given["magnitudes"], *given["below"])
        cells.setdefault((given["arm"], where), []).append(record.result)
    means = {key: np.array([row["mean"] for row in some]) for key, some in cells.items()}
    tests = dict(zip(means, holm([_p(some) for some in means.values()]), strict=True))
    findings = []
    for where in dict.fromkeys(key[1] for key in cells):
        on = means[ON, where].mean()
        opposite = means[POSITIVE, where].mean()
        there = tests[ON, where] < 0.05 and on < 0 < opposite and tests[POSITIVE, where] < 0.05
        findings.append(
            Finding(
                "two maxima and V of one sign: rounded away from zero",
                Verdict.CONFIRMED if there else Verdict.REFUTED,
                f"{on:+.4f} ulp (p = {tests[ON, where]:.2g}, Holm); V positive {opposite:+.4f} ({tests[POSITIVE, where]:.2g})",
                where,
            )
        )  # fmt: skip
        for name in INTERVENTIONS if there else ():
            left = means[name, where].mean()
            share = abs(left / on)
            verdict = Verdict.CONFIRMED if share <= 0.1 else Verdict.REFUTED if share > 0.5 else Verdict.INCONCLUSIVE
            findings.append(
                Finding(
                    f"{name} removes the bias", verdict,
                    f"{left:+.4f} ulp is left, {share:.0%} (p = {tests[name, where]:.2g})", where,
                )
            )  # fmt: skip
    rows = [
        (arm, where, f"{means[arm, where].mean():+.4f}", f"{means[arm, where].std(ddof=1):.4f}", f"{tests[arm, where]:.2g}",
         *(f"{sum(row[name] for row in some) / sum(row['outputs'] for row in some):.1%}" for name in ("up", "down", "ties")))
        for (arm, where), some in cells.items()
    ]  # fmt: skip
    columns = ("setting", "values", "mean error, ulp", "deviation over seeds", "p (Holm)", "rounded up", "rounded down", "ties")
    where = max((key[1] for key in means), key=lambda place: abs(means[ON, place].mean()))
    shown = ", ".join(f"{name} {means[name, where].mean():+.3f}" for name in (ON, *INTERVENTIONS))
    summary = f"mean signed error in ulp ({where}): {shown}"
    table = Table("Signed errors of P V rounded to bf16:", columns, rows)
    note = (
        "Not foreseen by the protocol: one maximum alone has the larger bias, toward zero and not away from it. Where the "
        "other terms add up to less than half a unit, the output is the one value of V, and they are lost every time."
    )
    return Answer(summary, findings, (table,), lambda figure: _draw(figure, means), (note,))


def _p(values_: np.ndarray) -> float:
    if values_.std() == 0:
        return float(values_.mean() == 0)
    return float(stats.ttest_1samp(values_, 0.0).pvalue)


def _draw(figure: Figure, means: Mapping[tuple[str, str], np.ndarray]) -> None:
    axes = figure.subplots()
    keys = list(means)[::-1]
    for place, key in enumerate(keys):
        color = "#b2182b" if key[0] in (ON, POSITIVE) else "#2166ac"
        axes.plot(means[key], np.full(len(means[key]), place), ".", color=color, alpha=0.7)
    axes.axvline(0, color="0.6", lw=0.8)
    axes.set_yticks(range(len(keys)), [f"{arm}; {where}" for arm, where in keys], fontsize=7)
    axes.set_xlabel("mean signed error, units in the last place; a dot a seed")
