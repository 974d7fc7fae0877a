"""Products of block-scaled matrices as tensor cores make them: MX formats and NVFP4.

`accumulation/instructions.py` says what each model does. Operands are float64 matrices of values of the operand formats, scales
one value for each row and block of `scaled` terms; the result holds fp32 values.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from fpsim.accumulation.instructions import ScaledInstruction
from fpsim.numbers.formats import FP32, Format
from fpsim.numbers.rounding import Rounding, round_into
from fpsim.sums.units.blocks import block_product
from fpsim.sums.units.specials import among_specials, decided, finite_part
from fpsim.sums.units.steps import powers

_OVERFLOW = 2.0**128


def scaled_product_into_fp32(
    a: np.ndarray, b: np.ndarray, a_scale: np.ndarray, b_scale: np.ndarray, formats: tuple[Format, Format],
    row: ScaledInstruction, start: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """start + the scaled product; a and a_scale (m, k), b and b_scale (k, n), scales repeated for each of their terms."""
    function = _terms_with_scales if row.model == "scaled block" else _groups
    wide = (a * a_scale, b * b_scale)
    finite = [np.isfinite(x) for x in wide]
    if finite[0].all() and finite[1].all() and np.isfinite(start).all():
        return function(a, b, a_scale, b_scale, formats, row, start)
    kept = [np.where(good, x, 0) for good, x in zip(finite, (a, b), strict=True)]
    scales = [np.where(good, x, 1) for good, x in zip(finite, (a_scale, b_scale), strict=True)]

    def terms(rows: np.ndarray | slice, columns: np.ndarray | slice, part: slice, addend: np.ndarray) -> np.ndarray:
        left, right = (x[rows][:, part] for x in (kept[0], scales[0])), (x[part][:, columns] for x in (kept[1], scales[1]))
        (a, a_scale), (b, b_scale) = left, right
        return function(a, b, a_scale, b_scale, formats, row, addend)

    def special(rows: np.ndarray | slice, columns: np.ndarray | slice, part: slice, addend: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return wide[0][rows][:, part] @ wide[1][part][:, columns] + addend

    def by_blocks(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        total = start[np.ix_(rows, columns)]
        for first in range(0, a.shape[1], row.block):
            where = (rows, columns, slice(first, first + row.block))
            total = decided(special(*where, total), partial(terms, *where), total)
        return total

    everything = (slice(None),) * 3
    return among_specials(special(*everything, start), terms(*everything, finite_part(start)), by_blocks)


def _terms_with_scales(
    a: np.ndarray, b: np.ndarray, a_scale: np.ndarray, b_scale: np.ndarray, formats: tuple[Format, Format],
    row: ScaledInstruction, start: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Blocks as of unscaled operands; scales are powers of two, which multiply terms and the powers they are aligned by."""
    left, right = powers(a, formats[0].emin) * a_scale, powers(b, formats[1].emin) * b_scale
    return block_product(a * a_scale, b * b_scale, left, right, row.block, row.fraction, start)


def _groups(
    a: np.ndarray, b: np.ndarray, a_scale: np.ndarray, b_scale: np.ndarray, formats: tuple[Format, Format],
    row: ScaledInstruction, start: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """For every `block` terms: groups of `group`, each summed exactly and multiplied by its scales; then aligned and added.

    A group is aligned by the product of its scales' powers; one without products, or with a zero scale, takes no part.
    """
    total, unit, emin = start, 2.0**row.fraction, row.scale_format.emin
    for first in range(0, a.shape[1], row.block):
        sums, tops = [], []
        for begin in range(first, min(first + row.block, a.shape[1]), row.group):
            part = slice(begin, begin + row.group)
            # Exact in any order: multiples of 1/4 up to 576, and counts up to 16.
            exact = a[:, part] @ b[part]
            present = (a[:, part] != 0).astype(float) @ (b[part] != 0).astype(float) != 0
            scale = a_scale[:, begin, None] * b_scale[None, begin]
            top = powers(a_scale[:, begin], emin)[:, None] * powers(b_scale[begin], emin)
            sums.append(exact * scale)
            tops.append(np.where(present, top, 0.0))
        sums.append(total)
        tops.append(powers(total, FP32.emin))
        top = np.maximum(np.max(tops, axis=0), 2.0**-600)
        whole = sum(np.trunc(value * (unit / top)) for value in sums)  # integers below 2^53
        total = _toward_zero(whole * (top / unit))
    return total


def _toward_zero(exact: np.ndarray) -> np.ndarray:
    """fp32 values toward zero; from 2^128 on infinity, as for the unscaled units."""
    rounded = np.array(exact)
    round_into(rounded, rounded, FP32, Rounding.TOWARD_ZERO)
    return np.where(np.abs(exact) < _OVERFLOW, rounded, np.copysign(np.inf, exact)) + 0.0
