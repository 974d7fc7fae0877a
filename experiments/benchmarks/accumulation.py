"""How long products take with each accumulator, as ratios to torch's native float32 product.

`python -m experiments.benchmarks.accumulation` prints the tables and writes accumulation.png. Medians of interleaved runs in
one process; one thread unless said. `--quick` makes fewer runs and leaves out the largest sizes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

import fpsim
from fpsim.accumulation import Accumulator, get_accumulator
from fpsim.accumulation.orders import given
from fpsim.accumulation.trees import Tree
from fpsim.formats import get_format
from fpsim.products import matmul_into
from fpsim.rounding import Rounding, draw_key
from fpsim.threads import set_num_threads

SIZE = 512
CONSOLE = Console(width=110)


@dataclass(frozen=True)
class Case:
    """One row of the table: a format, an accumulator, a mode, and the limit on the ratio."""

    fmt: str
    accumulate: str
    rounding: str
    limit: float

    @property
    def name(self) -> str:
        return f"{self.fmt}, {self.accumulate}" + ("" if self.rounding == "nearest-even" else f", {self.rounding}")


CASES = [
    Case("fp16", "fp16", "nearest-even", 7),
    Case("bf16", "bf16", "nearest-even", 7),
    Case("e5m2", "e5m2", "nearest-even", 8.5),
    Case("e4m3", "e4m3", "nearest-even", 8.5),
    Case("e6m9", "e6m9", "nearest-even", 8.5),
    Case("fp16", "fp16:pairwise", "nearest-even", 8),
    Case("fp16", "fp16:blocked(32)", "nearest-even", 8),
    Case("bf16", "bf16:lanes(8)", "nearest-even", 8),
    Case("fp16", "random tree", "nearest-even", 8),
    Case("fp16", "fp16:fma", "nearest-even", 12),
    Case("bf16", "bf16:fma", "nearest-even", 12),
    Case("fp16", "fp16", "nearest-away", 12),
    Case("fp16", "fp16", "toward-zero", 12),
    Case("fp16", "fp16", "down", 12),
    Case("fp16", "fp16", "odd", 12),
    Case("fp16", "fp16", "stochastic", 25),
    Case("fp16", "fp16:kahan", "nearest-even", 30),
    Case("fp16", "fp16:neumaier", "nearest-even", 30),
    Case("fp16", "fp32", "nearest-even", 2.2),
    Case("fp32", "fp32", "nearest-even", 2.2),
    Case("fp32", "fp32:fma", "nearest-even", 2.2),
    Case("tf32", "tf32", "nearest-even", 30),
    Case("fp32", "fp32", "toward-zero", 30),
    Case("fp16", "exact", "nearest-even", 80),
    Case("fp16", "fp16:blocked(64)->fp32", "nearest-even", 8),
]


def random_tree(leaves: int, seed: int = 0) -> Tree:
    """A tree that merges two of its parts at random until one is left."""
    generator = np.random.default_rng(seed)
    parts: list[object] = list(range(leaves))
    while len(parts) > 1:
        first = parts.pop(int(generator.integers(len(parts))))
        second = parts.pop(int(generator.integers(len(parts))))
        parts.append((first, second))
    return Tree.from_nested(parts[0])


def accumulator_of(case: Case, leaves: int) -> Accumulator:
    if case.accumulate == "random tree":
        return Accumulator(format=get_format(case.fmt), order=given(random_tree(leaves)))
    return get_accumulator(case.accumulate)


def operands(rows: int, leaves: int, columns: int, fmt: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = ((rows, leaves), (leaves, columns))
    a, b = (fpsim.round(generator.standard_normal(shape).astype(np.float32), fmt) for shape in shapes)
    return a, b, np.empty((rows, columns), np.float32)


def product(case: Case, rows: int = SIZE, leaves: int = SIZE, columns: int = SIZE) -> Callable[[], None]:
    a, b, out = operands(rows, leaves, columns, case.fmt)
    fmt, accumulator, mode = get_format(case.fmt), accumulator_of(case, leaves), Rounding(case.rounding)
    key = draw_key(0) if mode is Rounding.STOCHASTIC else 0
    return lambda: matmul_into(a, b, out, fmt, accumulator, mode, key)


def native(rows: int = SIZE, leaves: int = SIZE, columns: int = SIZE) -> Callable[[], object]:
    import torch

    a, b, out = (torch.from_numpy(x) for x in operands(rows, leaves, columns, "fp32"))
    return lambda: torch.matmul(a, b, out=out)


def half_loop(size: int = SIZE) -> Callable[[], object]:
    """The rank-1 loop that rounds every operation to fp16 in torch."""
    import torch

    a, b = (torch.from_numpy(x).half() for x in operands(size, size, size, "fp16")[:2])

    def run() -> object:
        total = torch.zeros(size, size, dtype=torch.half)
        for k in range(size):
            total = total + a[:, k : k + 1] * b[k : k + 1]
        return total

    return run


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
    for heading in ("case", "ms", "G multiply-adds/s", "ratio of medians", "of least times", "limit", ""):
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
    """Other shapes at their rate relative to the square product's, and two threads relative to one."""
    case = CASES[0]
    shapes = {
        "64 x 64 x 64": (64, 64, 64),
        "4096 x 64 x 64": (4096, 64, 64),
        "1 x 4096 x 4096": (1, 4096, 4096),
        "4096 x 4096 x 1": (4096, 4096, 1),
        "1024 x 1024 x 1024": (1024, 1024, 1024),
    }
    functions = {"square": product(case)} | {name: product(case, *shape) for name, shape in shapes.items()}
    functions["64 x 64 x 64"] = repeated(functions["64 x 64 x 64"], 50)
    times = timed(functions, runs, slow=1.0)
    times["64 x 64 x 64"] = [seconds / 50 for seconds in times["64 x 64 x 64"]]
    rate = SIZE**3 / statistics.median(times["square"])
    table = Table(title=f"{case.name}: other shapes, one thread (at least half the square product's rate)")
    for heading in ("shape", "G multiply-adds/s", "of the square product's rate"):
        table.add_column(heading, justify="left" if heading == "shape" else "right")
    for name, (rows, leaves, columns) in shapes.items():
        own = rows * leaves * columns / statistics.median(times[name])
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

    times = timed({"ours": ours, "theirs": theirs}, 5)
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
    threads_line(runs)
    peer_line()
    growth_picture(512 if arguments.quick else 2048, arguments.picture)


if __name__ == "__main__":
    main()
