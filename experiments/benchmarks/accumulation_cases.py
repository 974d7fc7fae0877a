"""The products that the accumulation benchmark times: formats, accumulators, modes, and what each is held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import fpsim
from fpsim.accumulation import Accumulator, get_accumulator
from fpsim.accumulation.orders import given
from fpsim.accumulation.trees import Tree
from fpsim.numbers.formats import get_format
from fpsim.numbers.rounding import Rounding, draw_key
from fpsim.sums.product import product_into
from fpsim.sums.task import Draws, Sum

SIZE = 512


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


def product(
    case: Case, rows: int = SIZE, leaves: int = SIZE, columns: int = SIZE, counters: fpsim.Counters | None = None
) -> Callable[[], None]:
    a, b, out = operands(rows, leaves, columns, case.fmt)
    fmt, accumulator, mode = get_format(case.fmt), accumulator_of(case, leaves), Rounding(case.rounding)
    key = draw_key(0) if mode is Rounding.STOCHASTIC else 0
    task, draws = Sum.of(fmt, accumulator, mode), Draws(key, 0, columns)
    return lambda: product_into(task, a, b, out, draws, counters=counters)


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
