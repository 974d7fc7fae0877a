"""`fpsim demo`: one small network, one seed, several arithmetics."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING

import click

from fpsim.cli.outcome import STEPS, TEST_IMAGES, TRAINING_IMAGES, Outcome
from fpsim.cli.parameters import ACCUMULATOR, FORMAT, InputError, Parsed
from fpsim.report.console import console as make_console
from fpsim.report.plain import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fpsim.report.comparison import Comparison
    from fpsim.report.records import Measurement

_REQUIRED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "jinja2": "Jinja2"}
_DEFAULT = "fp32,bf16,fp16,fp16/fp16,e5m2"


@dataclass(frozen=True)
class Arithmetic:
    """One row of the demo: what tensors hold and what sums accumulate in."""

    fmt: str
    accumulate: str = "fp32"

    def __str__(self) -> str:
        return f"{self.fmt}, sums in {self.accumulate}"


def _arithmetics(text: str) -> list[Arithmetic]:
    """Parse "fp32,fp16/fp16": formats, each with the accumulator after a slash where it is not fp32."""
    arithmetics = []
    for item in re.split(r",(?![^(]*\))", text):
        fmt, _, accumulate = item.strip().partition("/")
        FORMAT.convert(fmt, None, None)
        ACCUMULATOR.convert(accumulate or "fp32", None, None)
        arithmetics.append(Arithmetic(fmt, accumulate or "fp32"))
    return arithmetics


@click.command()
@click.option("--epochs", type=click.IntRange(1), default=6, show_default=True, help="Passes over the training images.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of weights, order and dropout.")
@click.option(
    "--formats",
    type=Parsed("list", _arithmetics),
    default=_DEFAULT,
    show_default=True,
    help="Arithmetics to compare: FORMAT or FORMAT/ACCUMULATOR, separated by commas.",
)
@click.option(
    "--output", type=click.Path(), default="fpsim-demo.png", show_default=True,
    help="Where the loss curves go (PNG); the report is a page beside it (.html).",
)  # fmt: skip
@click.option(
    "--jobs", type=click.IntRange(1), default=lambda: os.cpu_count() or 1, show_default="one for each core",
    help="How many arithmetics run at a time.",
)  # fmt: skip
def demo(epochs: int, seed: int, formats: list[Arithmetic], output: str, jobs: int) -> None:
    """Train one small network in several arithmetics and compare.

    The network has convolutions, batch norm, pooling and dropout; the images are scikit-learn's 1797 handwritten
    digits. Weights, order of the images and dropout are the same for every row. Ctrl-C keeps what is finished.
    """
    _check_output(output)
    console = make_console()
    outcomes, interrupted = _train_all(console, formats, epochs, seed, min(jobs, len(formats)))
    console.print()
    console.print(_table(outcomes))
    console.print(
        "\ncorrect: test images; loss: mean of the last 20 steps; overflows, underflows to zero and results that are "
        "not finite: counts over the whole run; updates lost: changes of a parameter that rounding undid.",
    )
    if any(outcome.losses for outcome in outcomes.values()):
        _draw(outcomes, output)
        page = os.path.splitext(output)[0] + ".html"
        _comparison(outcomes).to_html(page)
        console.print(f"\nLoss curves: {plain(output)}\nReport: {plain(page)}", soft_wrap=True)
    if interrupted:
        raise SystemExit(130)


def _check_output(output: str) -> None:
    missing = [package for module, package in _REQUIRED.items() if find_spec(module) is None]
    if missing:
        raise InputError(
            f"the demo needs {' and '.join(missing)}: install the extra, pip install -c constraints.txt '.[demo]'"
        )
    folder = os.path.dirname(os.path.abspath(output))
    if os.path.isdir(output) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise InputError(f"--output: {output!r} cannot be written")


def _train_all(
    console: Console, formats: list[Arithmetic], epochs: int, seed: int, jobs: int
) -> tuple[dict[Arithmetic, Outcome], bool]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from fpsim.cli.arms import train_all

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"), TimeElapsedColumn(),
    )  # fmt: skip
    progress = Progress(*columns, console=console)
    tasks = [  # which are seen from their first steps on
        progress.add_task(str(item), start=False, total=epochs * STEPS, visible=False, loss=float("nan")) for item in formats
    ]

    lock = Lock()

    def begun() -> None:
        with lock:
            if not progress.live.is_started:
                console.print(f"Training on {TRAINING_IMAGES} handwritten digits, {epochs} epochs, seed {seed}; "
                              f"testing on {TEST_IMAGES}.")  # fmt: skip
                progress.start()

    def done(number: int, loss: float) -> None:
        progress.start_task(tasks[number])
        progress.update(tasks[number], advance=1, loss=loss, visible=True)

    try:
        outcomes, interrupted = train_all([(item.fmt, item.accumulate) for item in formats], epochs, seed, jobs, begun, done)
    except ValueError as error:
        raise InputError(f"--formats: {error}") from None
    finally:
        if progress.live.is_started:
            progress.stop()
    return dict(zip(formats, outcomes, strict=False)), interrupted


def _table(outcomes: dict[Arithmetic, Outcome]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("tensors", "sums in"):
        table.add_column(heading, no_wrap=True)
    for heading in ("correct", "loss", "over-\nflows", "under-\nflows", "not\nfinite", "updates\nlost", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for arithmetic, outcome in outcomes.items():
        table.add_row(arithmetic.fmt, arithmetic.accumulate, *_cells(outcome))
    return table


def _cells(outcome: Outcome) -> list[str]:
    accuracy = f"{outcome.correct}/{TEST_IMAGES}" if outcome.correct is not None else "stopped"
    if outcome.report is None:
        return [accuracy]
    total = outcome.report.total
    counts = (total.overflows, total.underflows, total.nonfinite)
    lost = f"{total.lost / total.updates:.1%}" if total.updates else "-"
    return [accuracy, f"{outcome.final_loss:.4f}", *map(str, counts), lost, f"{outcome.seconds:.0f}"]


def _comparison(outcomes: dict[Arithmetic, Outcome]) -> Comparison:
    """The runs and their reports; one whose test is worse than the first's beyond both 95 % intervals is degraded."""
    from fpsim.report.comparison import Comparison
    from fpsim.report.runs import Run

    runs: list[Run] = []
    for arithmetic, outcome in outcomes.items():
        if outcome.report is None:
            continue
        measured = _measured(outcome.correct, len(outcome.losses)) if outcome.correct is not None else None
        first = runs[0].report.measurement if runs else None
        if measured is not None and first is not None:
            measured = replace(measured, degraded=measured.high < first.low)
        report = replace(outcome.report, losses=tuple(outcome.losses), measurement=measured)
        if outcome.correct is None:
            report = replace(report, ending="KeyboardInterrupt")
        runs.append(Run(f"{arithmetic.fmt}/{arithmetic.accumulate}", report, seconds=outcome.seconds))
    return Comparison(tuple(runs))


def _measured(correct: int, steps: int) -> Measurement:
    """The share of the test images and its Wilson interval."""
    from scipy.stats import binomtest

    from fpsim.report.records import Measurement

    interval = binomtest(correct, TEST_IMAGES).proportion_ci(method="wilson")
    ends = float(interval.low), float(interval.high)
    return Measurement("share of test images classified", correct / TEST_IMAGES, *ends, TEST_IMAGES, steps)


def _draw(outcomes: dict[Arithmetic, Outcome], path: str) -> None:
    """The loss of every step, averaged over the last 20, on a logarithmic scale."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for arithmetic, outcome in outcomes.items():
        window = min(20, len(outcome.losses))
        if window:
            smooth = np.convolve(outcome.losses, np.ones(window) / window, mode="valid")
            axes.plot(np.arange(window, len(outcome.losses) + 1), smooth, label=str(arithmetic))
    axes.set(xlabel="optimizer step", ylabel="training loss (mean of 20 steps)", yscale="log")
    axes.set_title("One network, one seed, different arithmetic")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", dpi=150)
