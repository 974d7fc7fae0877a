"""Units that add blocks of products at a time, aligned and truncated, and what emulates others by two of them."""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np

from fpsim.accumulation.instructions import Formats, Instruction, Output, formats_of_both
from fpsim.backend import numba as kernels, threads
from fpsim.backend.numba.packing import extent
from fpsim.numbers.formats import FP16, FP32, Format
from fpsim.numbers.rounding import Rounding, round_into
from fpsim.sums.orientation import has_few_columns
from fpsim.sums.schemes import constants
from fpsim.sums.units.packing import TILE, Packed, padded
from fpsim.sums.units.specials import among_specials, decided, finite_part

_NEAREST = Rounding.NEAREST_EVEN


def around_specials(
    a: np.ndarray, b: np.ndarray, fmt: Formats, row: Instruction, output: Output, start: np.ndarray
) -> np.ndarray:
    """The unit's product of any operands and addend; the fast way for the finite ones."""
    product, by_blocks = (_block, _block_by_block) if row.model == "block" else (_emulated, _emulated_by_blocks)
    if all(np.isfinite(x).all() for x in (a, b, start)):
        return product(a, b, fmt, row, output, start)
    result = product(finite_part(a), finite_part(b), fmt, row, output, finite_part(start))

    def again(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return by_blocks(a[rows], b[:, columns], fmt, row, output, start[np.ix_(rows, columns)])

    return among_specials(_in_ieee(a, b, start), result, again)


def _in_ieee(a: np.ndarray, b: np.ndarray, addend: np.ndarray) -> np.ndarray:
    """addend + a @ b in float64, from whose limits finite products are far."""
    with np.errstate(all="ignore"):
        return a.astype(np.float64) @ b.astype(np.float64) + addend


def _block(a: np.ndarray, b: np.ndarray, fmt: Formats, row: Instruction, output: Output, start: np.ndarray) -> np.ndarray:
    """Chained blocks, each rounded to the output format."""
    job = _Blocks(a, b, fmt, row.block, row.fraction)
    return job.run(0, job.leaves, output.format, Rounding(output.rounding), start)


def _block_by_block(
    a: np.ndarray, b: np.ndarray, fmt: Formats, row: Instruction, output: Output, start: np.ndarray
) -> np.ndarray:
    """The same of any operands and addend."""
    return _any_blocks(a, b, fmt, row.block, row.fraction, output.format, Rounding(output.rounding), start)


def _any_blocks(
    a: np.ndarray, b: np.ndarray, fmt: Formats, block: int, fraction: int, target: Format, rounding: Rounding, total: np.ndarray
) -> np.ndarray:
    """Chained blocks of any operands from any addend, one after the other."""
    for first in range(0, a.shape[1], block):
        left, right = a[:, first : first + block], b[first : first + block]
        job = _Blocks(finite_part(left), finite_part(right), fmt, block, fraction)
        finite = partial(job.run, 0, job.leaves, target, rounding)
        total = decided(_in_ieee(left, right, total), finite, total)
    return total


def block_product(
    a: np.ndarray, b: np.ndarray, a_powers: np.ndarray, b_powers: np.ndarray, block: int, fraction: int, start: np.ndarray
) -> np.ndarray:
    """Chained blocks of finite float64 operands whose powers are given, 0 where an operand is zero; toward zero to fp32."""
    job = _Blocks(a, b, FP32, block, fraction, (a_powers, b_powers))
    return job.run(0, job.leaves, FP32, Rounding.TOWARD_ZERO, start)


def _emulated(a: np.ndarray, b: np.ndarray, fmt: Formats, row: Instruction, output: Output, start: np.ndarray) -> np.ndarray:
    """For every 32 terms: a chain of two blocks of 16 from +0 in the output format, then one rounded addition."""
    job = _Blocks(*_halves_first(a, b, row.block), fmt, row.block // 2, row.fraction)
    total = start.astype(np.float32)
    for first in range(0, job.leaves, row.block):
        part = job.run(first, first + row.block, output.format, _inner(output))
        _add_part(part, total, output)
    return total


def _emulated_by_blocks(
    a: np.ndarray, b: np.ndarray, fmt: Formats, row: Instruction, output: Output, start: np.ndarray
) -> np.ndarray:
    """The same of any operands and addend; the addition is IEEE 754's, to which an overflow is as infinite as a term."""
    a, b = _halves_first(a, b, row.block)
    total, nothing = start.astype(np.float32), np.zeros(start.shape)
    for first in range(0, a.shape[1], row.block):
        part = (a[:, first : first + row.block], b[first : first + row.block])
        chain = _any_blocks(*part, fmt, row.block // 2, row.fraction, output.format, _inner(output), nothing)
        _add_part(chain.astype(np.float32), total, output)
    return total


def _halves_first(a: np.ndarray, b: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole blocks of terms, in each those with k mod 4 < 2 before the others."""
    a, b = padded(a, b, block)
    places = np.arange(a.shape[1]).reshape(-1, block)
    order = np.concatenate([places[:, places[0] % 4 < 2], places[:, places[0] % 4 >= 2]], axis=1).reshape(-1)
    return a[:, order], b[order]


def _inner(output: Output) -> Rounding:
    """How the blocks of an emulated instruction round."""
    return Rounding.TOWARD_ZERO if output.format == FP32 else _NEAREST


def _add_part(part: np.ndarray, total: np.ndarray, output: Output) -> None:
    """total += part, rounded to nearest even in the output format."""
    with np.errstate(invalid="ignore", over="ignore"):
        np.add(part, total, out=total, dtype=np.float32, casting="same_kind")
    if output.format != FP32:
        round_into(total, total, output.format, _NEAREST)  # twice, and right: float32 has 2p + 2 bits for fp16


class _Blocks:
    """Finite operands packed once for the block kernel; the terms are padded with zeros to whole blocks.

    Few columns and many rows change places: products commute, and so does everything that a block does with them.
    """

    def __init__(
        self, a: np.ndarray, b: np.ndarray, fmt: Formats, block: int, fraction: int,
        powers: tuple[np.ndarray, np.ndarray] | None = None,
    ):  # fmt: skip
        """`powers`: of a and of b, where they are not those of values of `fmt`; the carrier is float64 then."""
        formats = formats_of_both(fmt)
        self.turned = has_few_columns(a, b)
        formats = formats[::-1] if self.turned else formats
        a, b = padded(*((b.T, a.T) if self.turned else (a, b)), block)
        self.block, self.fraction, self.leaves = block, fraction, a.shape[1]
        self.element = "f4" if powers is None and _fits_single(a, b, formats, block, fraction) else "f8"
        self.packed = Packed(a, b, self.element)
        if powers is not None:
            packed = Packed(*padded(*((powers[1].T, powers[0].T) if self.turned else powers), block), self.element)
            self.powers = [packed.a, packed.b]
        else:
            self.powers = self.packed.powers(formats)

    def run(self, begin: int, end: int, target: Format, rounding: Rounding, start: np.ndarray | None = None) -> np.ndarray:
        """The chained blocks of a range of terms, each rounded toward zero to fp32's range or to nearest even.

        `start` left out is +0. The next run overwrites the result.
        What rounds toward zero to infinity is 2^128 and above: so the published models, for no recorded result overflows.
        """
        packed, (left, right) = self.packed, self.powers
        out = packed.started(start if start is None or not self.turned else start.T)
        how = kernels.blocks.NEAREST
        if rounding is Rounding.TOWARD_ZERO:
            terms_and_addend = (self.block << (self.fraction + 2)) + (1 << (self.fraction + 1))
            small = self.element == "f4" and terms_and_addend <= 2**31 - 2**7  # the nearest float32 is an int32 too
            how = kernels.blocks.TOWARD_ZERO_INTEGERS if small else kernels.blocks.TOWARD_ZERO
        function = kernels.blocks.make_block_product(self.element, *TILE, how)
        settings = _settings(self.element, self.fraction, target.emin)
        kept = np.int32(-1 << (24 - target.precision))
        row = constants(FP16 if target == FP16 else FP32, _NEAREST, "f8")

        def task(first: int, last: int) -> None:
            function(
                packed.a, left, packed.b, right, out.reshape(-1), self.leaves, begin, end, self.block, packed.panels, first,
                last, out.shape[1], settings, 2.0**-self.fraction, kept, row,
            )  # fmt: skip

        threads.run(task, packed.parts())
        result = out[: packed.rows, : packed.columns]
        return result.T if self.turned else result


def _fits_single(a: np.ndarray, b: np.ndarray, formats: tuple[Format, Format], block: int, fraction: int) -> bool:
    """Whether float32 holds every product, its power and its scale, and an int32 the sum of a block.

    A term is below 4 * 2^fraction. The least power that has a scale in float32 is 2^(fraction - 126); products of the
    operand formats whose power is above that are multiples of 2^-149.
    """
    if block << (fraction + 2) > 2**31:
        return False
    low, high = sum(fmt.emin for fmt in formats), sum(fmt.emax for fmt in formats)
    if low < fraction - 126 or high > 124:
        extents = [extent(np.ascontiguousarray(x).reshape(-1)) for x in (a, b)]
        if any(largest == 0 for largest, _ in extents):
            return True
        low = sum(int(np.frexp(smallest)[1]) - 1 for _, smallest in extents)
        high = sum(int(np.frexp(largest)[1]) - 1 for largest, _ in extents)
    return low >= fraction - 126 and high <= 124


@lru_cache(maxsize=64)
def _settings(element: str, fraction: int, emin: int) -> np.ndarray:
    """What a block kernel gets, as bits of the carrier, named in `backend/numba/blocks.py`."""
    bits, stored, bias = (32, 23, 127) if element == "f4" else (64, 52, 1023)
    integer = np.dtype(f"i{bits // 8}")
    names = kernels.blocks
    row = np.zeros(names.SETTINGS, integer)
    # The sum of two exponent fields, which may exceed the width: the kernel's difference wraps back.
    scale = (2 * bias + fraction) << stored
    row[names.SCALE] = (scale + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))
    row[names.LEAST_SCALED] = np.array(2.0 ** (fraction - 126 if bits == 32 else -900), element).view(integer)
    row[names.LEAST_ADDEND] = np.array(2.0**emin, element).view(integer)
    row[names.ALONE] = -1 << max(0, stored - fraction)
    row.setflags(write=False)
    return row
