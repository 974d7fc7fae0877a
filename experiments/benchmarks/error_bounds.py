"""What running error bounds cost: products with and without, as ratios.

`python -m experiments.benchmarks.error_bounds` prints, for square matrices, the median processor time of a product with its
bound over that of the product alone, both from interleaved runs on one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from rich.console import Console
from rich.table import Table

import fpsim
from experiments.benchmarks.timing import interleaved_medians

ACCUMULATORS = (
    "fp16", "fp16:pairwise", "fp16:fma", "bf16", "fp32", "fp16:blocked(32)->fp32", "exact", "h100", "fp16:kahan",
)  # fmt: skip


def cases(size: int, accumulate: str) -> dict[str, Callable[[], object]]:
    generator = np.random.default_rng(0)
    a, b = (fpsim.round(generator.standard_normal((size, size)).astype(np.float32), "fp16") for _ in range(2))
    call = partial(fpsim.matmul, a, b, fmt="fp16", accumulate=accumulate)
    return {"alone": call, "bound": partial(call, error_bound=True), "99.9 %": partial(call, error_bound=0.999)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    fpsim.set_num_threads(1)
    table = Table("accumulate", "milliseconds alone", "with a bound", "with a bound of 99.9 %", title=f"n = {arguments.size}")
    for accumulate in ACCUMULATORS:
        medians = interleaved_medians(cases(arguments.size, accumulate), arguments.repetitions, time.process_time)
        alone = medians["alone"]
        table.add_row(accumulate, f"{1e3 * alone:.2f}", *(f"{medians[name] / alone:.2f}x" for name in ("bound", "99.9 %")))
    Console().print(table)


if __name__ == "__main__":
    main()
