"""What the first moments cost: `python -m experiments.benchmarks.start`.

Processor time, user's and system's of all threads, of processes that do nothing else; medians of several. Each pair of them
has a cache of kernels of its own, which the first finds empty and the second full. Threads of torch that wait for work sleep
(`OMP_WAIT_POLICY=passive`), for those that spin would be counted. NUMBA_CPU_NAME and NUMBA_CPU_FEATURES are passed on, so that
what another processor's code costs to compile can be had too (`znver3` with AVX2: `--avx2`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

STEADY_STEPS = 5
IMPORT = "import time; start = time.process_time(); import fpsim; print(time.process_time() - start)"
AVX2 = {"NUMBA_CPU_NAME": "znver3", "NUMBA_CPU_FEATURES": "+sse4.2,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+lzcnt"}

#: At most this many seconds.
LIMITS = {
    "first training step, CNN, empty cache": 6.0,
    "first training step, GPT-2, empty cache": 8.0,
    "full cache, beyond the steady step, CNN": 0.4,
    "full cache, beyond the steady step, GPT-2": 0.6,
    "demo, empty cache, wall clock": 35.0,
}


def cnn_step() -> Callable[[], object]:
    """A training step of a network of six layers (four convolutions, two of them normalized, and two linear)."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    import fpsim

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    x, target = torch.randn(8, 3, 16, 16), torch.randint(0, 10, (8,))
    simulation = fpsim.run(model, fmt="fp16", accumulate="fp16", inplace=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        with simulation:
            optimizer.zero_grad()
            F.cross_entropy(simulation(x), target).backward()
            optimizer.step()

    return step


def gpt2_step() -> Callable[[], object]:
    """A training step of a GPT-2 of two layers, dropout and all, with AdamW."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    import fpsim

    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 200, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    tokens = torch.randint(0, 200, (2, 64))
    simulation = fpsim.run(model, fmt="fp16", accumulate="fp16", inplace=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4)

    def step() -> None:
        with simulation:
            optimizer.zero_grad()
            simulation(tokens, labels=tokens).loss.backward()
            optimizer.step()

    return step


MODELS = {"CNN": cnn_step, "GPT-2": gpt2_step}


def measure(model: str) -> None:
    """Print, as JSON, the processor seconds of the first step and the median of those after it."""
    step = MODELS[model]()
    seconds = []
    for _ in range(1 + STEADY_STEPS):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    print(json.dumps([seconds[0], statistics.median(seconds[1:])]))


def _run(arguments: list[str], cache: Path, extra: dict[str, str]) -> str:
    env = {**os.environ, **extra, "FPSIM_CACHE_DIR": str(cache), "OMP_WAIT_POLICY": "passive"}
    return subprocess.run([sys.executable, *arguments], env=env, check=True, stdout=subprocess.PIPE, text=True).stdout


def times(runs: int, demo: bool, extra: dict[str, str]) -> dict[str, list[float]]:
    """Seconds of each run, by what is measured."""
    found: dict[str, list[float]] = {}
    for _ in track(range(runs), "processes", transient=True):
        for model in MODELS:
            with tempfile.TemporaryDirectory() as folder:
                command = ["-m", "experiments.benchmarks.start", "--measure", model]
                empty, _ = json.loads(_run(command, Path(folder), extra))
                first, steady = json.loads(_run(command, Path(folder), extra))
            found.setdefault(f"first training step, {model}, empty cache", []).append(empty)
            found.setdefault(f"full cache, beyond the steady step, {model}", []).append(first - steady)
            found.setdefault(f"steady step, {model}", []).append(steady)
        with tempfile.TemporaryDirectory() as folder:
            found.setdefault("import fpsim", []).append(float(_run(["-c", IMPORT], Path(folder), extra)))
            if demo:
                start = time.perf_counter()
                _run(["-m", "fpsim.cli", "demo", "--output", str(Path(folder) / "losses.png")], Path(folder), extra)
                found.setdefault("demo, empty cache, wall clock", []).append(time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="processes of each kind (5)")
    parser.add_argument("--demo", action="store_true", help="the demo too (a minute each)")
    parser.add_argument("--avx2", action="store_true", help="as on a processor with AVX2 and no AVX-512")
    parser.add_argument("--measure", choices=list(MODELS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    found = times(arguments.runs, arguments.demo, AVX2 if arguments.avx2 else {})
    table = Table(title=f"Seconds; medians of processes: {arguments.runs}")
    table.add_column("")
    for heading in ("median", "least", "at most", ""):
        table.add_column(heading, justify="right")
    for name, seconds in found.items():
        median, limit = statistics.median(seconds), LIMITS.get(name)
        verdict = "" if limit is None else "[green]within" if median <= limit else "[red]misses"
        table.add_row(name, f"{median:.2f}", f"{min(seconds):.2f}", "" if limit is None else f"{limit:g}", verdict)
    Console().print(table)


if __name__ == "__main__":
    main()
