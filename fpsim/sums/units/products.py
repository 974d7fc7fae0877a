"""Products of matrices as hardware units make them: packing, settings and the loops around the kernels.

Every function takes float32 or float64 matrices of values of the operand format and the addend that the sums start from, and
returns a new matrix of values of the output format. `accumulation/units.py` says what each model does.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np

from fpsim.accumulation.accumulator import Accumulator
from fpsim.accumulation.orders import sequential, split_edges
from fpsim.accumulation.units import Formats, Instruction, Output, formats_of_both
from fpsim.backend import threads
from fpsim.numbers.formats import FP16, FP32, Format
from fpsim.numbers.rounding import Rounding, round_into
from fpsim.sums.plan import plan
from fpsim.sums.schemes import constants
from fpsim.sums.task import Draws, Sum
from fpsim.sums.trees import product
from fpsim.sums.units.specials import among_specials, decided, finite_part

TILE = (4, 2)  # rows and vectors that a kernel holds in registers
_LANES = {"f4": 16, "f8": 8}
_EXPONENT = {"f4": np.int32(0x7F800000), "f8": np.int64(0x7FF0000000000000)}
_NEAREST = Rounding.NEAREST_EVEN
_FLUSHED = FP32.replace(name="fp32 without subnormals", flush="after")
_SCALE = 24  # binades that lift every float32 whose rounding matters out of the subnormal range
_warned: set[tuple[str, str]] = set()


class UnconfirmedUnit(UserWarning):
    """A unit's model rests on documents or published models and has been compared with no hardware."""


def unit_product(
    a: np.ndarray, b: np.ndarray, fmt: Formats, accumulator: Accumulator, addend: np.ndarray | None = None
) -> np.ndarray:
    """addend + a @ b as the unit's instruction for operands of `fmt` (one format, or one for each) gives it, in the
    accumulator's format.

    The addend holds values of that format and broadcasts; left out, +0. Where the terms are split, each part starts from +0
    and the parts, then the addend, are added to nearest even in that format. A product of zero and infinity, infinities of both
    signs and NaN give NaN, other infinities stay. Raises ValueError for operands that the unit does not take.
    """
    assert accumulator.unit is not None
    name = accumulator.format.name
    row = accumulator.unit.instruction(fmt, name)
    unit, output = accumulator.unit.name, row.outputs[name]
    what, verified, source = f"{', '.join(row.operands)} operands and {name} output", output.verified, output.source
    left, right = formats_of_both(fmt)
    if left != right:
        what, verified = f"{left.name} by {right.name} and {name} output", False
        source = f"it is computed as that of operands of one format, of which the row says: {source}"
    warn_once(unit, what, verified, f"unit {unit} with {what} is unconfirmed: {source}")
    if accumulator.order.name == "split":
        return _split_product(a, b, fmt, accumulator, addend)
    shape = (a.shape[0], b.shape[1])
    with np.errstate(invalid="ignore"):  # widening a signaling NaN is no error here
        start = np.zeros(shape) if addend is None else np.array(np.broadcast_to(addend, shape), np.float64)
    if 0 in shape or a.shape[1] == 0:
        return start
    if row.model in ("block", "emulated"):
        return _around_specials(a, b, fmt, row, row.outputs[name], start)
    if row.model == "chain":
        return _chain(a, b, fmt, row, row.outputs[name].format, start)
    from fpsim.sums.units import step_kernels, steps

    found = step_kernels.step_product(a, b, fmt, row, start)
    return steps.MODELS[row.model](a, b, fmt, row, start) if found is None else found


def _split_product(
    a: np.ndarray, b: np.ndarray, fmt: Formats, accumulator: Accumulator, addend: np.ndarray | None
) -> np.ndarray:
    """The parts of split(k), each a product of the unit, added one after the other."""
    whole = replace(accumulator, order=sequential)
    edges = split_edges(a.shape[1], accumulator.order.parameters[0])
    terms = [unit_product(a[:, i:j], b[i:j], fmt, whole).astype(np.float64) for i, j in pairwise(edges)]
    if addend is not None:
        terms.append(np.broadcast_to(addend, terms[0].shape).astype(np.float64))
    total = terms[0]
    for term in terms[1:]:
        with np.errstate(invalid="ignore"):
            total = total + term  # two values of fp32 or fp16 in float64: rounding twice is right, 53 >= 2 * 24 + 2
        round_into(total, total, accumulator.format, _NEAREST)
    return total


def warn_once(unit: str, row: str, verified: bool, message: str) -> None:
    """Warn, once in a process, that a row of a unit has been compared with no hardware."""
    if not verified and (unit, row) not in _warned:
        _warned.add((unit, row))
        warnings.warn(message, UnconfirmedUnit, stacklevel=3)


def _around_specials(
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
    job = _Blocks(a, b, fmt, row.block, row.fraction, row.block)
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
        job = _Blocks(finite_part(left), finite_part(right), fmt, block, fraction, block)
        finite = partial(job.run, 0, job.leaves, target, rounding)
        total = decided(_in_ieee(left, right, total), finite, total)
    return total


def block_product(
    a: np.ndarray, b: np.ndarray, a_powers: np.ndarray, b_powers: np.ndarray, block: int, fraction: int, start: np.ndarray
) -> np.ndarray:
    """Chained blocks of finite float64 operands whose powers are given, 0 where an operand is zero; toward zero to fp32."""
    job = _Blocks(a, b, FP32, block, fraction, block, (a_powers, b_powers))
    return job.run(0, job.leaves, FP32, Rounding.TOWARD_ZERO, start)


def _emulated(a: np.ndarray, b: np.ndarray, fmt: Formats, row: Instruction, output: Output, start: np.ndarray) -> np.ndarray:
    """For every 32 terms: a chain of two blocks of 16 from +0 in the output format, then one rounded addition."""
    job = _Blocks(*_halves_first(a, b, row.block), fmt, row.block // 2, row.fraction, row.block)
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


def padded(a: np.ndarray, b: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Both operands with zeros up to a whole number of blocks."""
    missing = -a.shape[1] % block
    if missing == 0:
        return a, b
    return np.pad(a, ((0, 0), (0, missing))), np.pad(b, ((0, missing), (0, 0)))


class _Blocks:
    """Finite operands packed once for the block kernel; the terms are padded with zeros to whole multiples of `multiple`.

    Few columns and many rows change places: products commute, and so does everything that a block does with them.
    """

    def __init__(
        self, a: np.ndarray, b: np.ndarray, fmt: Formats, block: int, fraction: int, multiple: int,
        powers: tuple[np.ndarray, np.ndarray] | None = None,
    ):  # fmt: skip
        """`powers`: of a and of b, where they are not those of values of `fmt`; the carrier is float64 then."""
        formats = formats_of_both(fmt)
        self.turned = b.shape[1] < 32 and a.shape[0] > b.shape[1]
        formats = formats[::-1] if self.turned else formats
        a, b = padded(*((b.T, a.T) if self.turned else (a, b)), multiple)
        self.block, self.fraction, self.leaves = block, fraction, a.shape[1]
        self.element = "f4" if powers is None and _fits_single(a, b, formats, block, fraction) else "f8"
        self.packed = Packed(a, b, self.element)
        if powers is not None:
            given = Packed(*padded(*((powers[1].T, powers[0].T) if self.turned else powers), multiple), self.element)
            self.powers = [given.a, given.b]
            return
        self.powers = self.packed.powers(formats)

    def run(self, begin: int, end: int, target: Format, rounding: Rounding, start: np.ndarray | None = None) -> np.ndarray:
        """The chained blocks of a range of terms, each rounded toward zero to fp32's range or to nearest even.

        `start` left out is +0. The next run overwrites the result.
        What rounds toward zero to infinity is 2^128 and above: so the published models, for no recorded result overflows.
        """
        from fpsim.backend.numba import blocks as kernels

        packed, (left, right) = self.packed, self.powers
        out = packed.started(start if start is None or not self.turned else start.T)
        how = kernels.NEAREST
        if rounding is Rounding.TOWARD_ZERO:
            terms_and_addend = (self.block << (self.fraction + 2)) + (1 << (self.fraction + 1))
            small = self.element == "f4" and terms_and_addend <= 2**31 - 2**7  # the nearest float32 is an int32 too
            how = kernels.TOWARD_ZERO_INTEGERS if small else kernels.TOWARD_ZERO
        function = kernels.make_block_product(self.element, *TILE, how)
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


class Packed:
    """Operands in the layout of the kernels."""

    def __init__(self, a: np.ndarray, b: np.ndarray, element: str):
        from fpsim.backend.numba.products import pack_columns, pack_rows

        self.element = element
        (self.rows, self.leaves), self.columns = a.shape, b.shape[1]
        rows, width = TILE[0], TILE[1] * _LANES[element]
        self.groups, self.panels = -(-self.rows // rows), -(-self.columns // width)
        self.a = np.empty(self.groups * rows * self.leaves, element)
        self.b = np.empty(self.panels * width * self.leaves, element)
        self.out = np.empty((self.groups * rows, self.panels * width), element)
        pack_rows(a, self.a, rows, 0, self.groups)
        pack_columns(b, self.b, width)

    def powers(self, formats: tuple[Format, Format]) -> list[np.ndarray]:
        """2^exponent of every element of both, in the same layout (see `backend/numba/blocks.py`)."""
        from fpsim.backend.numba.blocks import powers

        found = [np.empty_like(values) for values in (self.a, self.b)]
        for values, own, out in zip((self.a, self.b), formats, found, strict=True):
            powers(values, _EXPONENT[self.element], values.dtype.type(2.0**own.emin), out)
        return found

    def started(self, start: np.ndarray | None) -> np.ndarray:
        """The matrix that holds the addends and then the sums, in whole tiles; the same one every time."""
        self.out.fill(0)
        if start is not None:
            self.out[: self.rows, : self.columns] = start
        return self.out

    def parts(self) -> list[tuple[int, int]]:
        """Ranges of row groups for the threads."""
        return threads.parts(self.groups, 4 * self.rows * self.leaves * self.columns)


def _fits_single(a: np.ndarray, b: np.ndarray, formats: tuple[Format, Format], block: int, fraction: int) -> bool:
    """Whether float32 holds every product, its power and its scale, and an int32 the sum of a block.

    A term is below 4 * 2^fraction. The least power that has a scale in float32 is 2^(fraction - 126); products of the
    operand formats whose power is above that are multiples of 2^-149.
    """
    if block << (fraction + 2) > 2**31:
        return False
    low, high = sum(fmt.emin for fmt in formats), sum(fmt.emax for fmt in formats)
    if low < fraction - 126 or high > 124:
        from fpsim.backend.numba.products import extent

        extents = [extent(np.ascontiguousarray(x).reshape(-1)) for x in (a, b)]
        if any(largest == 0 for largest, _ in extents):
            return True
        low = sum(int(np.frexp(smallest)[1]) - 1 for _, smallest in extents)
        high = sum(int(np.frexp(largest)[1]) - 1 for largest, _ in extents)
    return low >= fraction - 126 and high <= 124


@lru_cache(maxsize=64)
def _settings(element: str, fraction: int, emin: int) -> np.ndarray:
    """What a block kernel gets, as bits of the carrier, named in `backend/numba/blocks.py`."""
    from fpsim.backend.numba import blocks as names

    bits, stored, bias = (32, 23, 127) if element == "f4" else (64, 52, 1023)
    integer = np.dtype(f"i{bits // 8}")
    row = np.zeros(names.SETTINGS, integer)
    # The sum of two exponent fields, which may exceed the width: the kernel's difference wraps back.
    scale = (2 * bias + fraction) << stored
    row[names.SCALE] = (scale + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))
    row[names.LEAST_SCALED] = np.array(2.0 ** (fraction - 126 if bits == 32 else -900), element).view(integer)
    row[names.LEAST_ADDEND] = np.array(2.0**emin, element).view(integer)
    row[names.ALONE] = -1 << max(0, stored - fraction)
    row.setflags(write=False)
    return row


def _chain(
    a: np.ndarray, b: np.ndarray, fmt: Formats, row: Instruction, target: Format, start: np.ndarray
) -> np.ndarray:
    """One fused multiply-add a term, the later of each pair first where the instruction says so."""
    if row.swapped:
        a, b = padded(a, b, 2)
        order = np.arange(a.shape[1]) ^ 1
        a, b = a[:, order], b[order]
    if not row.flush and not start.view(np.int64).any():  # from +0: what the product kernels have fast paths for
        operand = max(formats_of_both(fmt), key=lambda held: held.precision)
        return product(plan(Sum.of(operand, _fused(target), _NEAREST), a.shape[1]), a, b, Draws())
    return chain_product(a, b, _FLUSHED if row.flush else target, start, row.flush)


@lru_cache(maxsize=8)
def _fused(target: Format) -> Accumulator:
    return Accumulator(format=target, products="fma")


def chain_product(a: np.ndarray, b: np.ndarray, target: Format, start: np.ndarray, flush: bool) -> np.ndarray:
    """start + a @ b as a chain of fused multiply-adds to nearest even in `target`, in ascending k.

    `flush`: subnormal operands and addends count as zeros of their sign. Any operands, NaN and infinities included.
    """
    from fpsim.backend.numba import chains as kernels

    if b.shape[1] < 32 and a.shape[0] > b.shape[1]:
        return chain_product(b.T, a.T, target, start.T, flush).T
    if flush:
        a, b, start = (without_subnormals(x) for x in (a, b, start))
    scaled = target == _FLUSHED and _stays_below(a, b, start)
    element = "f4" if scaled else "f8"
    lift = 2.0**_SCALE if scaled else 1.0
    with np.errstate(invalid="ignore"):
        packed = Packed(a * a.dtype.type(lift), b, element)
        out = packed.started(start * lift)
    function = kernels.make_chain(element, *TILE)
    row = constants(target, _NEAREST, "f8")
    least = out.dtype.type(FP32.min_normal * lift)

    def task(first: int, last: int) -> None:
        function(
            packed.a, packed.b, out.reshape(-1), packed.leaves, packed.panels, first, last, out.shape[1], row, least
        )  # fmt: skip

    threads.run(task, packed.parts())
    return out[: packed.rows, : packed.columns] / out.dtype.type(lift)  # exact: what is left is at least 2^-126


def without_subnormals(x: np.ndarray) -> np.ndarray:
    """x with magnitudes below fp32's least normal number as zeros of their sign."""
    return np.where(np.abs(x) < FP32.min_normal, np.copysign(x.dtype.type(0), x), x)


def _stays_below(a: np.ndarray, b: np.ndarray, start: np.ndarray) -> bool:
    """Whether no partial sum, nor an operand, leaves float32's range after the lift; False for what is not finite."""
    largest: list[Any] = [np.abs(x).max(initial=0.0) for x in (a, b, start)]
    left, right, first = (float(value) for value in largest)
    bound = 2.0 * (first + a.shape[1] * left * right)
    return bound < 2.0 ** (127 - _SCALE) and left < 2.0 ** (127 - _SCALE)
