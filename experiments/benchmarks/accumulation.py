"""How long products take with each accumulator, as ratios to torch's native float32 product.

`python -m experiments.benchmarks.accumulation` prints the tables and writes accumulation.png. Medians of interleaved runs in
one process; one thread unless said. `--quick` makes fewer runs and leaves out the largest sizes.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

import fpsim
from experiments.benchmarks.accumulation_arrays import convolution_table, start_line, sums_line
from experiments.benchmarks.accumulation_cases import CASES, SIZE, accumulator_of, half_loop, native, operands, product
from fpsim.backend.threads import set_num_threads

CONSOLE = Console(width=100)

Clock = Callable[[], float]


def timed(
    functions: dict[str, Callable[[], object]], runs: int, clock: Clock = time.thread_time, slow: float = 0.3
) -> dict[str, list[float]]:
    """Seconds of each run, interleaved; what takes longer than `slow` seconds runs three times.

    One thread is timed by its own processor time, so that other processes on the machine disturb less.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for name, function in functions.items():
        function()
        start = clock()
        function()
        times[name].append(clock() - start)
    for _ in range(runs):
        for name, function in functions.items():
            if times[name][0] > slow and len(times[name]) >= 3:
                continue
            start = clock()
            function()
            times[name].append(clock() - start)
    return times


def main_table(runs: int) -> None:
    functions: dict[str, Callable[[], object]] = {"native": native()}
    functions |= {case.name: product(case) for case in CASES}
    functions["torch.half rank-1 loop"] = half_loop()
    times = timed(functions, runs)
    base, best = statistics.median(times["native"]), min(times["native"])
    table = Table(title=f"{SIZE}^3, one thread; torch float32: {base * 1e3:.2f} ms (median), {best * 1e3:.2f} ms (least)")
    for heading in ("case", "ms", "G/s", "ratio", "least", "limit", ""):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for case in [*CASES, None]:
        name = case.name if case else "torch.half rank-1 loop"
        median, least = statistics.median(times[name]), min(times[name])
        limit = case.limit if case else None
        verdict = "" if limit is None else "[green]within" if median / base <= limit else "[red]misses"
        table.add_row(
            name, f"{median * 1e3:.1f}", f"{SIZE**3 / median / 1e9:.2f}", f"{median / base:.2f}", f"{least / best:.2f}",
            f"{limit:g}" if limit else "", verdict,
        )  # fmt: skip
    CONSOLE.print(table)


def repeated(function: Callable[[], object], count: int) -> Callable[[], object]:
    """Many calls as one, where a single one is shorter than a clock is good for."""

    def run() -> None:
        for _ in range(count):
            function()

    return run


def shapes_table(runs: int) -> None:
    """Other shapes at their rate relative to the square product's, and a call's overhead.

    Each is repeated until it has half the square product's multiply-adds: what a first call finds in no cache weighs alike.
    """
    case = CASES[0]
    shapes = {
        "64 x 64 x 64": (64, 64, 64),
        "4096 x 64 x 64": (4096, 64, 64),
        "1 x 1024 x 1024": (1, 1024, 1024),
        "1024 x 1024 x 1": (1024, 1024, 1),
        "1 x 4096 x 4096": (1, 4096, 4096),
        "4096 x 4096 x 1": (4096, 4096, 1),
        "1024 x 1024 x 1024": (1024, 1024, 1024),
    }
    counts = {name: max(1, SIZE**3 // 2 // math.prod(shape)) for name, shape in shapes.items()}
    functions = {"square": product(case)}
    functions |= {name: repeated(product(case, *shape), counts[name]) for name, shape in shapes.items()}
    times = timed(functions, runs, slow=1.0)
    rate = SIZE**3 / statistics.median(times["square"])
    table = Table(title=f"{case.name}: other shapes, one thread (at least half the square product's rate)")
    for heading in ("shape", "G multiply-adds/s", "of the square product's rate"):
        table.add_column(heading, justify="left" if heading == "shape" else "right")
    for name, (rows, leaves, columns) in shapes.items():
        own = rows * leaves * columns * counts[name] / statistics.median(times[name])
        table.add_row(name, f"{own / 1e9:.2f}", f"{own / rate:.2f}")
    CONSOLE.print(table)
    small = product(case, 2, 2, 2)
    small()
    calls = []
    for _ in range(500):
        start = time.thread_time()
        small()
        calls.append(time.thread_time() - start)
    CONSOLE.print(f"overhead of a call (2 x 2 x 2): {statistics.median(calls) * 1e6:.0f} microseconds (at most 100)")


def counters_table(runs: int) -> None:
    """What counting swamped additions, overflows, underflows and the largest magnitude costs, wherever there is a tree."""
    table = Table(title=f"{SIZE}^3 with counters, one thread: times the product without (at most 1.5)")
    for heading in ("case", "ratio", ""):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for case in CASES:
        if accumulator_of(case, SIZE).kind.uncounted:
            continue
        times = timed({"plain": product(case), "counted": product(case, counters=fpsim.Counters())}, runs)
        ratio = statistics.median(times["counted"]) / statistics.median(times["plain"])
        table.add_row(case.name, f"{ratio:.2f}", "[green]within" if ratio <= 1.5 else "[red]misses")
    CONSOLE.print(table)


def threads_line(runs: int) -> None:
    run = product(CASES[0], 1024, 1024, 1024)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(runs):
        for count, found in seconds.items():
            set_num_threads(count)
            start = time.perf_counter()
            run()
            found.append(time.perf_counter() - start)
    set_num_threads(1)
    gain = statistics.median(seconds[1]) / statistics.median(seconds[2])
    best = min(seconds[1]) / min(seconds[2])
    CONSOLE.print(f"two threads, 1024^3: {gain:.2f} x one (medians), {best:.2f} x (least times); at least 1.8 wanted")


def peer_line() -> None:
    """APyTypes, the fastest peer with rounding at each step, on a smaller product."""
    try:
        import apytypes
    except ImportError:
        CONSOLE.print("APyTypes is not installed: no comparison with a peer (pip install apytypes)")
        return
    size = 128
    a, b, _ = operands(size, size, size, "fp16")
    left, right = (apytypes.APyFloatArray.from_array(x.astype(np.float64), 5, 10) for x in (a, b))
    step = apytypes.APyFloatAccumulatorContext(exp_bits=5, man_bits=10)
    ours = product(CASES[0], size, size, size)

    def theirs() -> object:
        with step:
            return left @ right

    times = timed({"ours": ours, "theirs": theirs}, 5, clock=time.process_time)  # it has threads of its own
    ratio = statistics.median(times["theirs"]) / statistics.median(times["ours"])
    CONSOLE.print(f"APyTypes {apytypes.__version__}, {size}^3 with an fp16 accumulator: {ratio:.0f} x our time (at least 30)")


def growth_picture(largest: int, path: str) -> None:
    """Time against m*n*k, which should lie on lines of slope one, and the main cases' rates."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = [size for size in (64, 128, 256, 512, 1024, 2048) if size <= largest]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for case in (CASES[0], CASES[1], CASES[5], CASES[9], CASES[23]):
        seconds = []
        for size in sizes:
            times = timed({"run": product(case, size, size, size)}, 3, slow=1.0)
            seconds.append(min(times["run"]))
        axes.loglog([size**3 for size in sizes], seconds, marker="o", label=case.name)
        slope = np.log(seconds[-1] / seconds[-3]) / np.log((sizes[-1] / sizes[-3]) ** 3)
        CONSOLE.print(f"{case.name}: time grows as (m n k)^{slope:.2f} from {sizes[-3]}^3 to {sizes[-1]}^3")
    axes.set_xlabel("multiply-adds, m n k")
    axes.set_ylabel("seconds, one thread")
    axes.legend()
    figure.savefig(path, dpi=150)
    CONSOLE.print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs, sizes to 512")
    parser.add_argument("--picture", default="accumulation.png", help="where the picture goes")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    set_num_threads(1)
    runs = 7 if arguments.quick else 25
    main_table(runs)
    shapes_table(runs)
    convolution_table(CONSOLE, runs)
    sums_line(CONSOLE, runs)
    counters_table(runs)
    start_line(CONSOLE, 1 if arguments.quick else 5)
    threads_line(runs)
    peer_line()
    growth_picture(512 if arguments.quick else 2048, arguments.picture)


if __name__ == "__main__":
    main()
