"""Errors of dot products beside their bounds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

import fpsim
from experiments.answer import Answer, Finding, Table, Verdict, number
from experiments.draws import Draws
from experiments.runs import Record
from experiments.statistics import holm
from fpsim import bounds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIDENCE = 0.999
UNIT = {"fp16": 2.0**-11, "bf16": 2.0**-8}


def _normal(draws: Draws, *shape: int) -> np.ndarray:
    """Nearly normal: the sum of twelve uniform numbers less six, added in order."""
    total = np.full(shape, -6.0)
    for _ in range(12):
        total += draws.uniform(*shape)
    return total


DATA: dict[str, Callable[[Draws, tuple[int, int]], np.ndarray]] = {
    "normal": lambda draws, shape: _normal(draws, *shape),
    "positive": lambda draws, shape: draws.uniform(*shape),
    "relu": lambda draws, shape: np.maximum(_normal(draws, *shape), 0),
    "constant": lambda draws, shape: np.full(shape, 0.1),
}


def operands(data: str, fmt: str, terms: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of the format: (side, terms) and (terms, side)."""
    draws = Draws(terms, f"accumulation {data}")
    left = DATA[data](draws, (side, terms))
    if data == "constant":
        right = np.ones((terms, side))
    else:
        right = DATA["positive" if data == "positive" else "normal"](draws, (terms, side))
    return fpsim.round(left.astype(np.float32), fmt), fpsim.round(right.astype(np.float32), fmt)


def measure(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Errors of side^2 sums as parts of T = sum |a b|, and how they compare with each bound."""
    fmt, accumulate, rounding = (configuration[name] for name in ("fmt", "accumulate", "rounding"))
    terms, side = configuration["terms"], configuration["side"]
    a, b = operands(configuration["data"], fmt, terms, side)
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    exact, sizes = exact_sums(a64, b64), exact_sums(np.abs(a64), np.abs(b64))
    result, found = _sums_and_bounds(a, b, fmt, accumulate, rounding)
    error = np.abs(result.astype(np.float64) - exact)
    slack = 2.0**-52 * sizes  # of the exact sum's own rounding, and the difference's
    row: dict[str, Any] = {"mean": _six(np.mean(error / sizes)), "largest": _six(np.max(error / sizes)), "sums": error.size}
    for name, bound in found.items():
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(error == 0, 0.0, error / bound)
        row[name] = {
            "ratio": _six(np.max(ratio)), "violated": int(np.count_nonzero(error > bound + slack)),
            "bound": _six(np.mean(bound / sizes)),
        }  # fmt: skip
    return row


def exact_sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correctly rounded: the products of values of 11 bits are exact in float64."""
    return np.array([[math.fsum(row * column) for column in b.T] for row in a])


def _sums_and_bounds(
    a: np.ndarray, b: np.ndarray, fmt: str, accumulate: str, rounding: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Sums, rounded to the format at the end, and their bounds by name."""
    seed = 1 if rounding == "stochastic" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fpsim.hardware.UnconfirmedUnit)
        result, running = fpsim.matmul(
            a, b, fmt=fmt, accumulate=accumulate, rounding=rounding, seed=seed, error_bound=True
        )  # fmt: skip
        found = {"worst case": bounds.matmul(a, b, fmt=fmt, accumulate=accumulate, rounding=rounding), "running": running}
        if "kahan" not in accumulate and accumulate != "h100":
            found["probable"] = bounds.matmul(
                a, b, fmt=fmt, accumulate=accumulate, rounding=rounding, confidence=CONFIDENCE
            )  # fmt: skip
    return result, found


def _six(value: float) -> float | str:
    return number(float(f"{value:.6g}"))


def judge(records: Sequence[Record]) -> Answer:
    by = {tuple(record.run.configuration[name] for name in ("arm", "data", "terms")): record.result for record in records}
    arms = list(dict.fromkeys(key[0] for key in by))
    names = {"worst case": "a-priori, worst case", "running": "running", "probable": "a-priori, 99.9 %"}
    rows = []
    for arm in arms:
        for data in DATA:
            cells = [row for (some, of, _), row in by.items() if (some, of) == (arm, data)]
            ratios = [max((float(row[name]["ratio"]) for row in cells if name in row), default="-") for name in names]
            rows.append((arm, data, *(f"{row['mean']:.2g}" for row in cells), *ratios))
    lengths = sorted({key[2] for key in by})
    table = Table(
        "Mean error / T by K, and the worst observed ratio of an error to each bound:",
        ("sum", "data", *(f"K = {terms}" for terms in lengths), *names.values()), rows,
    )  # fmt: skip
    worst = {name: max(float(row[name]["ratio"]) for row in by.values() if name in row) for name in names}
    summary = "worst observed error / bound: " + ", ".join(f"{names[name]} {worst[name]:.3g}" for name in names)
    findings = (*_containment(by), *_probabilistic(by), *_growth(by, lengths), *_wide(by))
    return Answer(summary, findings, (table,), lambda figure: _draw(figure, by, arms, lengths))


Cells = Mapping[tuple[str, str, int], Mapping[str, Any]]


def _containment(by: Cells) -> list[Finding]:
    sums = sum(row["sums"] for row in by.values())
    found = []
    for name, text in (("worst case", "a-priori worst-case"), ("running", "running")):
        violated = sum(row[name]["violated"] for row in by.values())
        ratio, where = max((float(row[name]["ratio"]), key) for key, row in by.items())
        found.append(
            Finding(
                f"the {text} bound contains every error", Verdict.REFUTED if violated else Verdict.CONFIRMED,
                f"{violated} violations; worst ratio {ratio:.3g} ({', '.join(map(str, where))} terms)",
                f"{sums} sums, all cells",
            )
        )  # fmt: skip
    return found


def _probabilistic(by: Cells) -> list[Finding]:
    found = []
    for stochastic, text in ((True, "under stochastic rounding"), (False, "under rounding to nearest, on random data")):
        cells = {
            key: row for key, row in by.items()
            if "probable" in row and ("stochastic" in key[0]) == stochastic and (stochastic or key[1] != "constant")
        }  # fmt: skip
        violated = sum(row["probable"]["violated"] for row in cells.values())
        count = sum(row["sums"] for row in cells.values())
        tests = [stats.binom.sf(row["probable"]["violated"] - 1, row["sums"], 1 - CONFIDENCE) for row in cells.values()]
        least = min(holm(tests))
        found.append(
            Finding(
                f"the 99.9 % bound holds {text}", Verdict.REFUTED if least < 0.001 else Verdict.CONFIRMED,
                f"{violated} of {count} sums beyond it; least p of a cell {least:.2g} (Holm)",
                f"{len(cells)} cells",
            )
        )  # fmt: skip
    still = {key: row for key, row in by.items() if key[1] == "constant" and "probable" in row and "stochastic" not in key[0]}
    beyond = [f"{arm} at K = {terms}" for (arm, _, terms), row in still.items() if row["probable"]["violated"]]
    found.append(
        Finding(
            "rounding to nearest violates it where sums stagnate", Verdict.CONFIRMED if beyond else Verdict.REFUTED,
            "violated by " + (", ".join(beyond) or "none"), "constant 0.1",
        )
    )  # fmt: skip
    return found


def _slope(by: Cells, arm: str, lengths: Sequence[int]) -> float:
    means = [by[arm, "positive", terms]["mean"] for terms in lengths]
    return float(np.polyfit(np.log(lengths), np.log(means), 1)[0])


def _growth(by: Cells, lengths: Sequence[int]) -> list[Finding]:
    found = []
    for fmt, largest in (("fp16", 1024), ("bf16", 256)):
        chosen = [terms for terms in lengths if terms <= largest]
        chain, pairs = (_slope(by, arm, chosen) for arm in (fmt, f"{fmt}, pairwise"))
        where = f"`positive`, K = {chosen[0]} to {chosen[-1]}"
        found += [
            Finding(
                f"{fmt}: a chain's error grows as sqrt(K) T", _holds(abs(chain - 0.5) <= 0.15), f"slope {chain:.3f}", where
            ),
            Finding(f"{fmt}: a pairwise sum's hardly grows", _holds(pairs <= 0.15), f"slope {pairs:.3f}", where),
        ]
    return found


def _wide(by: Cells) -> list[Finding]:
    found = []
    for fmt, unit in UNIT.items():
        largest = max(row["mean"] for (arm, _, _), row in by.items() if arm == f"{fmt} in fp32")
        found.append(
            Finding(
                f"{fmt} operands summed in fp32: mean error below u T at every length", _holds(largest < unit),
                f"largest mean error {largest:.3g} T, u = {unit:.3g}", "all data, the last rounding included",
            )
        )  # fmt: skip
    return found


def _holds(true: bool) -> Verdict:
    return Verdict.CONFIRMED if true else Verdict.REFUTED


def _draw(figure: Figure, by: Cells, arms: Sequence[str], lengths: Sequence[int]) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    for panel, data in zip(axes, ("positive", "constant"), strict=True):
        for arm in arms:
            style = "--" if "stochastic" in arm else ":" if "fp32" in arm or "h100" in arm else "-"
            panel.plot(lengths, [by[arm, data, terms]["mean"] or None for terms in lengths], style, marker="o", ms=3, label=arm)
        panel.set(title=data, xlabel="terms K", xscale="log", yscale="log")
    axes[0].set_ylabel("mean |error| / T")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=7, frameon=False, loc="outside right center")
