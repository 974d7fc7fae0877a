"""Rounding 10 million float32 values: `python -m experiments.benchmarks.rounding`.

Every figure is a multiple of the time that `numpy.copyto` takes for the same arrays in the same run.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import fpsim
from experiments.benchmarks.timing import interleaved_medians
from fpsim.backend import threads

SIZE = 10_000_000
FORMATS = ("fp16", "bf16", "e5m2", "e4m3fn", "e4m3fnuz", "e6m9")
LIMIT, STOCHASTIC_LIMIT = 1.3, 4.0


def _ours(x: np.ndarray, out: np.ndarray, fmt: str, mode: str) -> Callable[[], object]:
    seed = 0 if mode == "stochastic" else None
    return lambda: fpsim.round(x, fmt, mode, seed=seed, out=out)


def _others(x: np.ndarray) -> dict[str, Callable[[], object]]:
    tensor = torch.from_numpy(x)
    return {
        "torch .half().float()": lambda: tensor.half().float(),
        "numpy astype(float16).astype(float32)": lambda: x.astype(np.float16).astype(np.float32),
        "ml_dtypes astype(bfloat16).astype(float32)": lambda: x.astype(ml_dtypes.bfloat16).astype(np.float32),
    }


def main() -> None:
    """Print the table of modes and formats on one thread, on two, and what a user would use instead."""
    x = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
    out = np.zeros_like(x)
    modes = [mode.value for mode in fpsim.Rounding]
    console = Console()
    torch.set_num_threads(1)
    for count in (1, 2):
        threads.set_num_threads(count)
        table = Table(title=f"fpsim.round(out=), {SIZE:,} float32, {count} thread(s): times x a NumPy copy")
        table.add_column("mode")
        for fmt in FORMATS:
            table.add_column(fmt, justify="right")
        table.add_column("limit", justify="right")
        for mode in modes:
            cases: dict[str, Callable[[], object]] = {"copy": lambda: np.copyto(out, x)}
            cases |= {fmt: _ours(x, out, fmt, mode) for fmt in FORMATS}
            medians = interleaved_medians(cases)
            limit = STOCHASTIC_LIMIT if mode == "stochastic" else LIMIT
            ratios = [f"{medians[fmt] / medians['copy']:.2f}" for fmt in FORMATS]
            table.add_row(mode, *ratios, f"{limit}")
        console.print(table)
    cases = {"copy": lambda: np.copyto(out, x), **_others(x)}
    medians = interleaved_medians(cases, repetitions=7)
    table = Table("what a user would use instead", "x a NumPy copy", title="one thread")
    for name in _others(x):
        table.add_row(name, f"{medians[name] / medians['copy']:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
