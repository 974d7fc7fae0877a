"""How long a model takes under emulation and how much memory, as ratios to the same model in torch's own float32.

`python -m experiments.benchmarks.models` prints the tables. Times are medians of interleaved runs in one process on two
threads; ratios of least times and of least processor times stand beside them, which other work on the machine disturbs
less (processor times compare on one thread: `--threads 1`; torch's own threads spin while they wait). Memory is that of a
process that does nothing else, beyond what the imports take.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import fpsim
from experiments.benchmarks.networks import WORKLOADS, Workload

CONSOLE = Console(width=110)
TASKS = ("inference", "training step")
ACCUMULATORS = ("fp16", "fp32", "native")

#: At most this many times what torch takes in float32: by model, task and accumulator.
LIMITS = {
    ("resnet18", "inference"): (9, 4, 1.8),
    ("resnet18", "training step"): (9, 4.5, 2),
    ("gpt2", "inference"): (6, 3, 1.8),
    ("gpt2", "training step"): (6, 3, 2),
}
MEMORY_LIMIT = 1.5
OVERHEAD_LIMIT = 12  # microseconds an operation


def job(workload: Workload, task: str, accumulate: str | None) -> Callable[[], object]:
    """One pass over the batch, emulated in fp16 with that accumulator, or by torch alone where it is None."""
    torch.manual_seed(0)
    model = workload.build().train(task != "inference")
    x, target = workload.batch()
    context: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if accumulate is not None:
        model = context = fpsim.run(model, fmt="fp16", accumulate=accumulate, inplace=True)
    if task == "inference":

        def infer() -> object:
            with context, torch.no_grad():
                return workload.output(model, x)

        return infer
    optimizer = workload.optimizer(model.parameters())

    def step() -> object:
        with context:
            optimizer.zero_grad()
            loss = workload.loss(model, x, target)
            loss.backward()
            optimizer.step()
            return loss

    return step


Measured = dict[str | None, list[tuple[float, float]]]


def interleaved(jobs: dict[str | None, Callable[[], object]], runs: int, label: str) -> Measured:
    """(seconds by the clock, seconds of the processors) of each run, the jobs taking turns."""
    for run in jobs.values():
        run()
        run()
    found: Measured = {name: [] for name in jobs}
    for _ in track(range(runs), label, console=CONSOLE, transient=True):
        for name, run in jobs.items():
            wall, processors = time.perf_counter(), time.process_time()
            run()
            found[name].append((time.perf_counter() - wall, time.process_time() - processors))
    return found


def speed_table(models: list[str], tasks: list[str], accumulators: list[str], runs: int, threads: int) -> None:
    table = Table(title=f"Times what torch takes in float32, threads: {threads}, interleaved runs: {runs}")
    for heading in ("model", "task", "accumulator", "ms", "ratio", "limit", "", "least", "processors"):
        table.add_column(heading, justify="left" if heading in ("model", "task", "accumulator", "") else "right")
    for name in models:
        for task in tasks:
            names: list[str | None] = [None, *accumulators]
            jobs = {accumulate: job(WORKLOADS[name], task, accumulate) for accumulate in names}
            found = interleaved(jobs, runs, f"{name}, {task}")
            base = summary(found[None])
            table.add_row(name, task, "torch float32", f"{base[0] * 1e3:.1f}", "1")
            for accumulate in accumulators:
                own = summary(found[accumulate])
                ratios = [mine / theirs for mine, theirs in zip(own, base, strict=True)]
                limit = LIMITS[name, task][ACCUMULATORS.index(accumulate)]
                verdict = "[green]within" if ratios[0] <= limit else "[red]misses"
                table.add_row(
                    "", "", accumulate, f"{own[0] * 1e3:.1f}", f"{ratios[0]:.2f}", f"{limit:g}", verdict,
                    f"{ratios[1]:.2f}", f"{ratios[2]:.2f}",
                )  # fmt: skip
    CONSOLE.print(table)


def summary(times: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Median and least of the clock's seconds, least of the processors'."""
    wall, processors = zip(*times, strict=True)
    return statistics.median(wall), min(wall), min(processors)


def peak(name: str, task: str, accumulate: str | None) -> int:
    """Bytes that the model, its batch and a few passes add to what this process held with everything imported."""
    torch.set_num_threads(2)
    importlib.import_module("transformers")
    if accumulate is not None:  # what is imported when it is first needed
        with fpsim.run(nn.Linear(8, 8), fmt="fp16", accumulate=accumulate) as sim:
            sim(torch.randn(4, 8)).sum().backward()
    before = _resident()
    run = job(WORKLOADS[name], task, accumulate)
    for _ in range(3):
        run()
    return _peak() - before


def _resident() -> int:
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * resource.getpagesize()


def _peak() -> int:
    """The most memory that this process ever had; what getrusage says on Linux includes its parent's at the fork."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def memory_table(models: list[str], tasks: list[str], accumulators: list[str]) -> None:
    table = Table(title="Peak memory beyond the imports, in a process of its own")
    for heading in ("model", "task", "accumulator", "MB", "ratio", "limit", ""):
        table.add_column(heading, justify="right" if heading in ("MB", "ratio", "limit") else "left")
    spawn = multiprocessing.get_context("spawn")
    for name in models:
        for task in tasks:
            base = 0
            for accumulate in (None, *accumulators):
                with ProcessPoolExecutor(1, mp_context=spawn) as process:
                    used = process.submit(peak, name, task, accumulate).result()
                if accumulate is None:
                    base = used
                    table.add_row(name, task, "torch float32", f"{used / 1e6:.0f}", "1")
                    continue
                verdict = "[green]within" if used / base <= MEMORY_LIMIT else "[red]misses"
                table.add_row("", "", accumulate, f"{used / 1e6:.0f}", f"{used / base:.2f}", f"{MEMORY_LIMIT:g}", verdict)
    CONSOLE.print(table)


def overhead_line(runs: int = 40, calls: int = 1000) -> None:
    """What an addition of 8 elements takes under emulation beyond what it takes without; operands are results of others."""

    def additions(a: torch.Tensor, b: torch.Tensor) -> float:
        start = time.thread_time()  # nothing here runs on another thread
        for _ in range(calls):
            torch.add(a, b)
        return (time.thread_time() - start) / calls * 1e6

    plain, emulated = [], []
    with torch.no_grad():
        for _ in range(runs):
            plain.append(additions(torch.randn(8), torch.randn(8)))
            with fpsim.emulate(fmt="fp16", accumulate="fp16"):
                emulated.append(additions(torch.randn(8), torch.randn(8)))
    medians, least = (kind(emulated) - kind(plain) for kind in (statistics.median, min))
    verdict = "[green]within" if medians <= OVERHEAD_LIMIT else "[red]misses"
    CONSOLE.print(
        f"dispatch: {medians:.1f} microseconds an operation more than torch.add of 8 elements alone (least {least:.1f}); "
        f"limit {OVERHEAD_LIMIT} {verdict}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=list(WORKLOADS), help="this model only")
    parser.add_argument("--task", action="append", choices=TASKS, help="this task only")
    parser.add_argument("--accumulate", action="append", choices=ACCUMULATORS, help="this accumulator only")
    parser.add_argument("--runs", type=int, default=9, help="interleaved runs of each (9)")
    parser.add_argument("--threads", type=int, default=2, help="of torch and of emulation (2)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the table of memory")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = (arguments.model or list(WORKLOADS), arguments.task or list(TASKS), arguments.accumulate or list(ACCUMULATORS))
    overhead_line()
    speed_table(*chosen, arguments.runs, arguments.threads)
    if not arguments.no_memory:
        memory_table(*chosen)


if __name__ == "__main__":
    main()
