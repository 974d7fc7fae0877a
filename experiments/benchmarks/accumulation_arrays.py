"""What the accumulation benchmark times beside square products: convolutions, sums along axes, and the first product."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

import fpsim
from experiments.benchmarks.accumulation_cases import CASES, SIZE, product
from experiments.benchmarks.timing import interleaved_medians

_START = """
import time
begin = time.perf_counter()
{imports}
import fpsim
import numpy as np
imported = time.perf_counter()
a = np.ones((64, 64), np.float32)
fpsim.matmul(a, a, fmt="fp16", accumulate="fp16")
print(imported - begin, time.perf_counter() - imported)
"""


def _layer() -> dict[str, Callable[[], object]]:
    """A layer of a ResNet, 64 channels, 3 x 3, 32 x 32, batch 16: the products of its forward and backward passes."""
    generator = np.random.default_rng(0)
    shapes = ((16, 64, 32, 32), (64, 64, 3, 3), (16, 64, 32, 32))
    x, weight, gradient = (fpsim.round(generator.standard_normal(shape).astype(np.float32), "fp16") for shape in shapes)
    how = {"padding": 1, "fmt": "fp16", "accumulate": "fp16"}
    return {
        "forward": lambda: fpsim.conv(x, weight, **how),
        "gradient of the input": lambda: fpsim.conv_input_gradient(gradient, weight, x.shape, **how),
        "gradient of the weight": lambda: fpsim.conv_weight_gradient(gradient, x, weight.shape, **how),
    }


def convolution_table(console: Console, runs: int) -> None:
    work = 16 * 64 * 64 * 9 * 32 * 32
    times = interleaved_medians({"square": product(CASES[0])} | _layer(), runs, time.thread_time)
    rate = SIZE**3 / times.pop("square")
    table = Table(title="fp16, fp16: a 3 x 3 layer, one thread (at least half the square product's rate)")
    for heading in ("product", "G multiply-adds/s", "of the square product's rate"):
        table.add_column(heading, justify="left" if heading == "product" else "right")
    for name, seconds in times.items():
        table.add_row(name, f"{work / seconds / 1e9:.2f}", f"{work / seconds / rate:.2f}")
    console.print(table)


def sums_line(console: Console, runs: int) -> None:
    """Additions a second along either axis of a large array, and of prefix sums."""
    x = fpsim.round(np.random.default_rng(0).standard_normal((4096, 4096)).astype(np.float32), "fp16")
    how = {"fmt": "fp16", "accumulate": "fp16"}
    cases: dict[str, Callable[[], object]] = {}
    for axis in (0, 1):
        cases[f"sum along axis {axis}"] = lambda axis=axis: fpsim.sum(x, axis, **how)
        cases[f"cumsum along axis {axis}"] = lambda axis=axis: fpsim.cumsum(x, axis, **how)
    for name, seconds in interleaved_medians(cases, runs, time.thread_time).items():
        console.print(f"{name} of 4096 x 4096, checks of the operand included: {x.size / seconds / 1e9:.2f} G additions/s")


def start_line(console: Console, runs: int) -> None:
    """The first product of a process, with no kernel compiled yet and with all of them in the cache.

    `import fpsim` imports neither Numba nor what Numba imports; both are timed, with that inside of the product and before it.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "FPSIM_CACHE_DIR": folder}

        def first(imports: str = "") -> float:
            code = _START.format(imports=imports)
            done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
            return float(done.stdout.split()[1])

        cold = first()
        warm = statistics.median(first() for _ in range(runs))
        prepared = statistics.median(first("import numba, scipy.linalg.cython_blas") for _ in range(runs))
    console.print(
        f"first product after import: {cold:.1f} s cold (at most 5), {warm:.2f} s warm (at most 0.5), of which importing Numba "
        f"takes most: {prepared:.2f} s where it was imported before"
    )
