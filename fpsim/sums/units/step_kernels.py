"""Units that add a few products at a time by kernels of their own, where what they are given is far from float32's edges."""

from __future__ import annotations

from math import frexp, inf

import numpy as np

from fpsim.accumulation.instructions import Formats, Instruction, formats_of_both
from fpsim.backend import numba as kernels, threads
from fpsim.backend.numba.packing import extent
from fpsim.numbers.formats import FP32
from fpsim.sums.orientation import has_few_columns
from fpsim.sums.units.packing import TILE, Packed, padded


def step_product(
    a: np.ndarray, b: np.ndarray, fmt: Formats, row: Instruction, start: np.ndarray
) -> np.ndarray | None:
    """start + a @ b, the same as by `steps.MODELS`; None where a kernel does not serve."""
    if row.flush:
        operands = zip((a, b), formats_of_both(fmt), strict=True)
        a, b = (np.where(np.abs(x) < operand.min_normal, 0, x) for x, operand in operands)
    model = kernels.unit_steps.MODELS[row.model]
    if not _is_tame(a, b, fmt, start, model.binades):
        return None
    if has_few_columns(a, b):
        swapped = formats_of_both(fmt)[::-1]
        result = step_product(b.T, a.T, swapped, row, start.T)
        return None if result is None else result.T
    packed = Packed(*padded(a, b, row.block), model.element)
    powers = packed.powers(formats_of_both(fmt)) if model.with_powers else [packed.a, packed.b]
    function = kernels.unit_steps.make_step_product(row.model, *TILE, row.block, row.fraction)
    out = packed.started(start)

    def task(first: int, last: int) -> None:
        function(
            packed.a, powers[0], packed.b, powers[1], out.reshape(-1), packed.leaves, packed.panels, first, last, out.shape[1]
        )

    threads.run(task, packed.parts())
    return out[: packed.rows, : packed.columns].astype(np.float64)


def _is_tame(a: np.ndarray, b: np.ndarray, fmt: Formats, start: np.ndarray, binades: float) -> bool:
    """Whether all is finite, no addend -0, and every term and sum a multiple of 2^-126, and of a power of two so many
    binades below one that none reaches, 2^127 at most.

    Sums are rounded in each step, and grow by less than a factor of 2 in 2^20 of them.
    """
    largest, smallest = zip(*(extent(np.ascontiguousarray(x).reshape(-1)) for x in (a, b, start)), strict=True)
    if max(largest) == inf or a.shape[1] > 2**20 or np.signbit(start[start == 0]).any():
        return False
    ranges = []  # quanta and bounds, as exponents
    if largest[0] and largest[1]:
        formats = formats_of_both(fmt)
        pairs = zip(smallest, formats, strict=False)
        quanta = (max(frexp(x)[1] - 1, operand.emin) + 1 - operand.precision for x, operand in pairs)
        ranges.append((sum(quanta), frexp(largest[0])[1] + frexp(largest[1])[1] + a.shape[1].bit_length()))
    if largest[2]:
        ranges.append((frexp(smallest[2])[1] - FP32.precision, frexp(largest[2])[1]))
    quantum, bound = min((x for x, _ in ranges), default=0), max((x for _, x in ranges), default=0) + 2
    return quantum >= -126 and bound <= 127 and bound - quantum <= binades
