"""Error bounds of dot products beside the errors measured, as a table and as a picture.

`python -m experiments.error_theory` prints, for dot products of 1024 terms and three kinds of data, how many times the mean
measured error each mean bound is. `--picture PATH` draws errors and bounds against the number of terms.
Every figure is a mean over 1024 dot products; seeds are fixed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fpsim
from fpsim import bounds
from fpsim.running.units import unit_error

SIDE = 32
CONFIDENCE = 0.999
DATA: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "N(0, 1)": lambda rng, shape: rng.standard_normal(shape),
    "U[0, 1]": lambda rng, shape: rng.random(shape),
    "ReLU x N": lambda rng, shape: np.maximum(rng.standard_normal(shape), 0),
}


@dataclass(frozen=True)
class Case:
    """A way to accumulate, and what is known of it beforehand. The sums are seen before any last rounding to `fmt`."""

    name: str
    fmt: str
    accumulate: str
    rounding: str = "nearest-even"

    def run(self, a: np.ndarray, b: np.ndarray, error_bound: bool | float) -> tuple[np.ndarray, np.ndarray]:
        """The sums and their running bounds."""
        accumulator = fpsim.get_accumulator(self.accumulate)
        if accumulator.kind == "unit":
            result = fpsim.hardware.product(a, b, unit=self.accumulate, fmt=self.fmt)
            return result, unit_error(a, b, fpsim.get_format(self.fmt), accumulator, None)
        wide = self.accumulate == "fp32:fma"  # products of fp16 values are exact in fp32: the chain, fused or not
        seed = 1 if self.rounding == "stochastic" else None
        return fpsim.matmul(
            a, b, fmt="fp32" if wide else self.fmt, accumulate=self.accumulate, rounding=self.rounding, seed=seed,
            error_bound=error_bound,
        )  # fmt: skip

    def before(self, terms: int) -> bounds.AccumulationBound:
        return bounds.accumulation_bound(self.fmt, self.accumulate, terms, self.rounding)

    def probably(self, terms: int) -> bounds.AccumulationBound | None:
        if fpsim.get_accumulator(self.accumulate).kind not in ("tree", "parts"):
            return None
        return bounds.probabilistic_bound(self.fmt, self.accumulate, terms, self.rounding, confidence=CONFIDENCE)


CASES = (
    Case("fp16", "fp16", "fp16"),
    Case("bf16", "bf16", "bf16"),
    Case("fp16 in fp32", "fp16", "fp32:fma"),
    Case("fp16, pairwise", "fp16", "fp16:pairwise"),
    Case("fp16, stochastic", "fp16", "fp16", "stochastic"),
    Case("fp16 on a tensor core (h100)", "fp16", "h100"),
)
MORE = (
    Case("fp16, fused", "fp16", "fp16:fma"),
    Case("fp16, blocked(32)", "fp16", "fp16:blocked(32)"),
    Case("fp16, blocked(32)->fp32", "fp16", "fp16:blocked(32)->fp32"),
    Case("fp16, Kahan", "fp16", "fp16:kahan"),
    Case("fp16, Neumaier", "fp16", "fp16:neumaier"),
)


def operands(case: Case, data: str, terms: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(terms)
    other = DATA["U[0, 1]" if data == "U[0, 1]" else "N(0, 1)"]
    a, b = DATA[data](rng, (SIDE, terms)), other(rng, (terms, SIDE))
    return fpsim.round(a.astype(np.float32), case.fmt), fpsim.round(b.astype(np.float32), case.fmt)


def measure(case: Case, data: str, terms: int) -> dict[str, float]:
    """Mean error and mean bounds over SIDE^2 sums, as parts of the mean sum of magnitudes."""
    a, b = operands(case, data, terms)
    exact, sizes = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)  # errs by 2^-45 of the terms
    found = {"a-priori": float(np.mean(case.before(terms).error_without_overflow(sizes)))}
    if (probable := case.probably(terms)) is not None:
        found["a-priori, 99.9 %"] = float(np.mean(probable.error_without_overflow(sizes)))
    result, running = case.run(a, b, True)
    found["running"] = float(np.mean(running))
    if probable is not None:
        found["running, 99.9 %"] = float(np.mean(case.run(a, b, CONFIDENCE)[1]))
    found["measured"] = float(np.mean(np.abs(result - exact)))
    return {name: value / float(np.mean(sizes)) for name, value in found.items()}


def table(terms: int) -> Table:
    columns = ("running", "running, 99.9 %", "a-priori, 99.9 %", "a-priori")
    shown = Table("sum", "data", "mean error / T", *columns, title=f"{terms} terms: mean bound / mean measured error")
    for case in track((*CASES, *MORE), description="measuring", transient=True):
        for data in DATA:
            found = measure(case, data, terms)
            ratios = (f"{found[name] / found['measured']:.3g}" if name in found else "-" for name in columns)
            shown.add_row(case.name, data, f"{found['measured']:.2e}", *ratios)
    return shown


_STYLES = {
    "a-priori": ("#b2182b", "-"),
    "a-priori, 99.9 %": ("#ef8a62", "--"),
    "running": ("#2166ac", "-"),
    "running, 99.9 %": ("#67a9cf", "--"),
    "measured": ("black", "o-"),
}


def draw(path: Path, lengths: list[int]) -> None:
    """Errors and bounds against n, one panel a case, on logarithmic axes; bounds above 1 say nothing."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(11, 6.4), sharex=True, layout="constrained")
    for case, panel in zip(CASES, axes.flat, strict=True):
        found = [measure(case, "N(0, 1)", terms) for terms in track(lengths, description=case.name, transient=True)]
        for name, (color, style) in _STYLES.items():
            if name in found[0]:
                values = [row[name] for row in found]
                panel.plot(lengths, values, style, color=color, label=name, markersize=3)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.axhspan(1, 8, color="0.92")
        panel.set(title=case.name, ylim=(min(row["measured"] for row in found) / 2, 8))
    for panel in axes[1]:
        panel.set_xlabel("terms")
    for panel in axes[:, 0]:
        panel.set_ylabel("error / sum of magnitudes")
    axes[0, 0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=100)


@click.command(help=__doc__)
@click.option("--terms", default=1024, show_default=True, help="Terms of the dot products of the table.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw a PNG instead of printing the table.")
@click.option("--longest", default=8192, show_default=True, help="The longest dot product of the picture.")
def main(terms: int, picture: Path | None, longest: int) -> None:
    warnings.simplefilter("ignore", fpsim.hardware.UnconfirmedUnit)
    if picture is None:
        Console(width=150).print(table(terms))
        return
    draw(picture, [2**power for power in range(3, longest.bit_length())])
    click.echo(f"drawn: {picture}")


if __name__ == "__main__":
    main()
