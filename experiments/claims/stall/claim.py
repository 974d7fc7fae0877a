"""Which updates of a weight are lost, exactly: by one subtraction, in gradient descent, and with Kahan's compensation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.answer import Answer, Finding, Table, Verdict
from experiments.claims.stall.law import measure_law
from experiments.claims.stall.radius import measure_radius
from experiments.claims.stall.repeated import measure_kahan, measure_sum
from experiments.runs import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = {"law": measure_law, "radius": measure_radius, "sum": measure_sum, "kahan": measure_kahan}
MACHINES = {"store": "only the stored weight rounded", "every": "every operation rounded"}
Results = Mapping[str, Mapping[str, Any]]


def measure(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one part for one format."""
    return PARTS[configuration["part"]](configuration)


def judge(records: Sequence[Record]) -> Answer:
    by: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    for record in records:
        by[record.run.configuration["part"]][record.run.configuration["fmt"]] = record.result
    findings = [*_law(by["law"]), *_radius(by["radius"]), *_sums(by["sum"]), *_kahan(by["kahan"])]
    counts = {verdict: sum(finding.verdict is verdict for finding in findings) for verdict in Verdict}
    summary = (
        f"{counts[Verdict.CONFIRMED]} statements hold in every case, {counts[Verdict.REFUTED]} fail in some as they are "
        "worded: the lower bound of the end, the radius read as a boundary, Kahan's limit (up to four times lower)"
    )
    return Answer(summary, findings, _tables(by), lambda figure: _draw(figure, by["radius"]))


def _verdict(holds: bool) -> Verdict:
    return Verdict.CONFIRMED if holds else Verdict.REFUTED


def _law(by: Results) -> list[Finding]:
    pairs, differ, other = (sum(row[name] or 0 for row in by.values()) for name in ("pairs", "differ", "differ_from_other"))
    formats = ", ".join(by)
    half, quarter, normal = (sum(row[name] for row in by.values()) for name in ("half", "quarter", "normal"))
    least = {fmt: (math.log2(row["least"]), math.log2(row["largest"])) for fmt, row in by.items()}
    sizes = ", ".join(f"{fmt} 2^{low:g} to 2^{high:g}" for fmt, (low, high) in least.items())
    return [
        Finding("an update is lost if and only if w - dw is within the midpoints beside w (at them: if w's last bit is 0)",
                _verdict(differ == other == 0), f"{differ} of {pairs} pairs differ; {other} by other arithmetic", formats),
        Finding("the threshold towards zero is half the weight's own spacing, at powers of two a quarter",
                _verdict(half + quarter == normal), f"half for {half}, a quarter for {quarter} of {normal}; of |w|: {sizes}",
                "every normal number"),
    ]  # fmt: skip


def _radius(by: Results) -> list[Finding]:
    found = []
    for machine, words in MACHINES.items():
        rows = [row for result in by.values() for row in result[machine]]
        total, inside, moving, outside, near = (
            sum(row[name] for row in rows) for name in ("descents", "inside", "inside_moving", "outside_still", "too_near")
        )
        conditions = f"{words}; {', '.join(by)}; every w in [1/2, 4], w* in [1, 2); a L = 1/2, .1, 1/32, .01"
        first, last = min(float(row["first_moving"]) for row in rows), max(row["last_still"] for row in rows)
        examples = ((row["rate"], *example) for row in rows for example in row["example"])
        example = next((f"a L = {rate:g}: {w0:g} ends at {w:g} for w* = {to:g}; " for rate, w0, to, w in examples), "")
        found += [
            Finding("within |w - w*| < eps |w*| / (a L + eps) no weight ever moves", _verdict(moving == 0),
                    f"{moving} of {inside} move", conditions),
            Finding("outside that radius every weight moves", _verdict(outside == 0),
                    f"{outside} of {total - inside} do not: the first that moves is {first:.4g} radii away, the last that does "
                    f"not {last:.3g}", conditions),
            Finding("the end is no nearer to w* than min(eps (1 - a L) / (a L + eps) |w*|, |w0 - w*|)", _verdict(near == 0),
                    f"{near} of {total} descents end nearer ({example}a step from outside may be rounded into the ball)",
                    conditions),
        ]  # fmt: skip
    return found


def _sums(by: Results) -> list[Finding]:
    found = []
    for fmt, row in by.items():
        mean_error = row["exact_deviation"] / math.sqrt(row["elements"])
        variance_error = row["exact_deviation"] / 2 * math.sqrt((row["exact_kurtosis"] - 1) / row["elements"])
        within = (abs(row["mean"] - row["exact_mean"]) < 4 * mean_error
                  and abs(row["deviation"] - row["exact_deviation"]) < 4 * variance_error)  # fmt: skip
        exactly = f"exactly {row['exact_mean']:.4f}, {row['exact_deviation']:.4f}"
        drawn = f"{row['elements']} elements: {row['mean']:.4f}, {row['deviation']:.4f}"
        if fmt == "bf16":
            found += [
                Finding("1 + 1000 * 0.001 in bf16 is 1.0 with nearest rounding", _verdict(row["nearest"] == 1),
                        f"{row['nearest']:g}", "exact"),
                Finding("with stochastic rounding its mean is 2.000, its deviation .084",
                        _verdict(within and f"{row['exact_mean']:.3f} {row['exact_deviation']:.3f}" == "2.000 0.084"),
                        f"{exactly}; {drawn}", "Markov chain; fpsim.optim.Stochastic"),
            ]  # fmt: skip
        else:
            found.append(
                Finding(f"{fmt} does not lose the updates of that sum", _verdict(row["nearest"] != 1 and within),
                        f"nearest {row['nearest']:g}; stochastic {exactly}; {drawn}", "not of the source: the same sum")
            )  # fmt: skip
        found.append(
            Finding(f"Kahan's update and a float32 copy bring that sum to 2 in {fmt}",
                    _verdict(row["kahan"] == row["master"] == 2), f"{row['kahan']:g}, {row['master']:g}", "fpsim.optim")
        )  # fmt: skip
    return found


def _kahan(by: Results) -> list[Finding]:
    found = []
    for fmt, row in by.items():
        unit = f"2^-{16 if fmt == 'bf16' else 22}"
        conditions = f"{fmt}, {row['weights']} weights in [1, 2), both signs"
        found += [
            Finding("Kahan's update stalls as well: the same small update, however often, does not move the weight",
                    _verdict(row["largest"] > 0 and row["differ"] == 0),
                    f"the largest such updates lie between {row['least']:.4g} and {row['largest']:.4g} times {unit} |w|; "
                    f"{row['differ']} of them differ when fpsim.optim.Kahan is stepped", conditions),
            Finding(f"every update below {unit} |w| is lost", _verdict(row["least"] >= 1),
                    f"up to {row['even'][-1]:g} * {unit} if the weight's last bit is 0, {row['odd'][0]:g} * {unit} if it is 1: "
                    "a tie at half the spacing ends the one and moves the other", conditions),
            Finding(f"none above {unit} |w| is", _verdict(row["largest"] <= 1),
                    f"at most {row['largest']:.4g} times {unit} |w|", conditions),
        ]  # fmt: skip
        if fmt == "bf16":
            found.append(
                Finding("from 1, updates of 1e-5 never move the weight", _verdict(row["named"]),
                        "the compensation ends at the tie, 2^-8, where 1e-5 is lost", fmt)
            )  # fmt: skip
    return found


def _tables(by: Mapping[str, Results]) -> tuple[Table, ...]:
    names = ("descents", "inside", "inside_moving", "outside_still", "first_moving", "last_still", "too_near")
    rows = [
        (fmt, MACHINES[machine], row["rate"], row["radius"], *(row[name] for name in names))
        for fmt, result in by["radius"].items() for machine in MACHINES for row in result[machine]
    ]  # fmt: skip
    columns = (
        "format", "machine", "a L", "radius / |w*|", "pairs of w and w*", "within", "of these moving", "outside, still",
        "first moving, radii", "last still, radii", "ends too near",
    )  # fmt: skip
    return (Table("Gradient descent with rounded weights:", columns, rows),)


def _draw(figure: Figure, by: Results) -> None:
    """The radius as a share of |w*|, and how far out weights still do not move."""
    axes = figure.subplots()
    for color, (fmt, result) in zip(("#b2182b", "#2166ac", "0.5", "#e08214"), by.items(), strict=False):
        rates = np.array([row["rate"] for row in result["store"]])
        radius = np.array([row["radius"] for row in result["store"]])
        axes.loglog(rates, radius, "o-", color=color, label=f"{fmt}: never moves below")
        last = [row["last_still"] for row in result["store"]]
        axes.loglog(rates, radius * last, "o:", color=color, ms=3, label="the last that does not")
    axes.set(xlabel="a L", ylabel="|w - w*| / |w*|")
    axes.legend(fontsize=7, frameon=False)
