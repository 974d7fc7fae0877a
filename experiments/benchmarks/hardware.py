"""How long products take on each hardware unit, as ratios to torch's native float32 product.

`python -m experiments.benchmarks.hardware` prints the table. Square matrices of 512, one thread, medians of interleaved
runs in one process, seconds of the thread's own processor time, so that other work on the machine counts less. Where mmasim is
installed, its model of the same instruction runs too, on a smaller product, and the times of one multiply-add are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import fpsim
from fpsim.hardware import UnconfirmedUnit
from fpsim.numbers.formats import get_format
from fpsim.numbers.rounding import Rounding
from fpsim.sums.product import product_into
from fpsim.sums.task import Sum

SIZE, SMALL = 512, 64
LIMIT = 20.0
#: Format, unit, and mmasim's (architecture, instruction) where it has one that takes the same block.
CASES = (
    ("fp16", "v100", ("Volta", "m8n8k4.f32.f16.f16.f32")),
    ("fp16", "a100", ("Ampere", "m16n8k16.f32.f16.f16.f32")),
    ("tf32", "a100", ("Ampere", "m16n8k8.f32.tf32.tf32.f32")),
    ("e4m3fn", "ada", None),
    ("fp16", "h100", ("Hopper", "m16n8k16.f32.f16.f16.f32")),
    ("fp16", "h100:fp16", ("Hopper", "m16n8k16.f16.f16.f16.f16")),
    ("bf16", "h100", ("Hopper", "m16n8k16.f32.bf16.bf16.f32")),
    ("tf32", "h100", ("Hopper", "m16n8k8.f32.tf32.tf32.f32")),
    ("e4m3fn", "h100", None),
    ("e4m3fn", "h100_mma:fp16", None),
    ("e4m3fn", "b200", None),
    ("fp16", "mi100", ("CDNA1", "f32_32x32x8f16")),
    ("bf16", "mi250", ("CDNA2", "f32_32x32x8bf16_1k")),
    ("fp16", "mi300", ("CDNA3", "f32_32x32x8_f16")),
    ("bf16", "mi300", ("CDNA3", "f32_32x32x8_bf16")),
    ("e4m3fnuz", "mi300", None),
    ("bf16", "avx512_bf16", None),
    ("fp16", "avx512_fp16", None),
    ("bf16", "amx_bf16", None),
    ("fp16", "amx_fp16", None),
    ("bf16", "arm_bf16", None),
    ("bf16", "arm_ebf16", None),
)


def operands(fmt: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    a, b = (fpsim.round(generator.standard_normal((size, size)).astype(np.float32), fmt) for _ in range(2))
    return a, b


def product(fmt: str, unit: str) -> Callable[[], object]:
    (a, b), out = operands(fmt, SIZE), np.empty((SIZE, SIZE), np.float32)
    task = Sum.of(get_format(fmt), fpsim.get_accumulator(unit), Rounding.NEAREST_EVEN)
    return lambda: product_into(task, a, b, out)


def native() -> Callable[[], object]:
    a, b = (torch.from_numpy(x) for x in operands("fp32", SIZE))
    out = torch.empty(SIZE, SIZE)
    return lambda: torch.matmul(a, b, out=out)


def peer(fmt: str, architecture: str, instruction: str) -> Callable[[], object]:
    """mmasim's model over a product of SMALL: its arithmetic takes any shape, and chains its blocks over k."""
    from mmasim.amd import MFMA
    from mmasim.nv_ptx import MMA

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}[fmt]
    a, b = (torch.from_numpy(x).to(dtype) for x in operands(fmt, SMALL))
    model = (MFMA if architecture.startswith("CDNA") else MMA)(architecture, instruction)
    start = torch.zeros(SMALL, SMALL, dtype=model.c_type)
    return lambda: model(a, b, start)


def medians(cases: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median seconds of this thread over interleaved runs, after one that compiles."""
    for call in cases.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repetitions):
        for name, call in cases.items():
            start = time.thread_time()
            call()
            seconds[name].append(time.thread_time() - start)
    return {name: statistics.median(measured) for name, measured in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=11)
    repetitions = parser.parse_args().repetitions
    warnings.simplefilter("ignore", UnconfirmedUnit)
    torch.set_num_threads(1)
    cases: dict[str, Callable[[], object]] = {"native": native()}
    has_peer = find_spec("mmasim") is not None
    for fmt, unit, instruction in CASES:
        cases[f"{fmt} {unit}"] = product(fmt, unit)
        if has_peer and instruction is not None:
            cases[f"peer {fmt} {unit}"] = peer(fmt, *instruction)
    seconds = medians(cases, repetitions)
    table = Table("operands", "unit", "ms", "x native fp32", "mmasim, x fpsim", title=f"{SIZE}^3, one thread")
    for fmt, unit, _ in CASES:
        own = seconds[f"{fmt} {unit}"]
        ratio = own / seconds["native"]
        theirs = seconds.get(f"peer {fmt} {unit}")
        compared = "-" if theirs is None else f"{theirs / SMALL**3 / (own / SIZE**3):.0f}"
        mark = "" if ratio <= LIMIT else f" (above {LIMIT:.0f})"
        table.add_row(fmt, unit, f"{own * 1e3:.1f}", f"{ratio:.1f}{mark}", compared)
    Console(width=110).print(table)
    if not has_peer:
        Console().print("mmasim is not installed: nothing to compare with.")


if __name__ == "__main__":
    main()
