"""Conversions between formats as single instructions of processors make them, NaN payloads included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fpsim.arrays.encoding import decode, encode
from fpsim.arrays.rounding import round as round_to
from fpsim.numbers.encoding import code_dtype
from fpsim.numbers.formats import BF16, FP16, FP32, Format
from fpsim.numbers.rounding import Rounding, get_rounding

_IEEE = (Rounding.NEAREST_EVEN, Rounding.DOWN, Rounding.UP, Rounding.TOWARD_ZERO)


@dataclass(frozen=True)
class Conversion:
    """One instruction: from which format to which, the roundings it can be given, and what sets it apart.

    NaN keeps its sign and the top of its payload, and becomes quiet. `flush` : subnormal operands count as zeros of their
    sign, whatever the processor's mode.
    """

    name: str
    title: str
    source: Format
    target: Format
    roundings: tuple[Rounding, ...]
    flush: bool
    evidence: str


_ROWS = (
    Conversion("vcvtps2ph", "x86 F16C, float32 to fp16", FP32, FP16, _IEEE, False, "compared with the instruction itself"),
    Conversion("vcvtph2ps", "x86 F16C, fp16 to float32", FP16, FP32, _IEEE[:1], False, "compared with the instruction itself"),
    Conversion(
        "vcvtneps2bf16", "x86 AVX512-BF16 and AVX-NE-CONVERT, float32 to bf16", FP32, BF16, _IEEE[:1], True,
        "compared with the instruction itself on Zen 4, all 2^32 operands",
    ),
)  # fmt: skip

#: Every conversion instruction, by name.
CONVERSIONS: dict[str, Conversion] = {row.name: row for row in _ROWS}


def convert(codes: Any, instruction: str, rounding: str | Rounding = "nearest-even") -> np.ndarray:
    """The codes that an instruction gives for codes of its source format: unsigned arrays of one shape.

    Raises
    ------
    ValueError : an unknown instruction (listing what there is), a rounding that it cannot be given.
    TypeError : codes that are no unsigned integers of the source format's size.
    """
    row = CONVERSIONS.get(instruction)
    if row is None:
        raise ValueError(f"unknown instruction {instruction!r}: known are {', '.join(CONVERSIONS)}")
    mode = get_rounding(rounding)
    if mode not in row.roundings:
        raise ValueError(f"{instruction} rounds {', '.join(map(str, row.roundings))}, not {mode}")
    array = np.asarray(codes)
    if array.dtype != code_dtype(row.source):
        raise TypeError(f"codes must be {code_dtype(row.source)}, the codes of {row.source.name}, got {array.dtype}")
    x = decode(array, row.source)
    if row.flush:
        x = np.where(np.abs(x) < row.source.min_normal, np.copysign(x.dtype.type(0), x), x)
    result = encode(round_to(x, row.target, mode), row.target)
    return np.where(np.isnan(x), _quiet(array, row), result)


def _quiet(codes: np.ndarray, row: Conversion) -> np.ndarray:
    """The NaN of the target with the sign and as much of the payload as there is room for."""
    stored = row.source.precision - 1, row.target.precision - 1
    wide = codes.astype(np.uint64)
    payload = wide & np.uint64(2 ** stored[0] - 1)
    room = stored[1] - stored[0]
    moved = payload << np.uint64(room) if room > 0 else payload >> np.uint64(-room)
    infinite = (2**row.target.exponent_bits - 1) << stored[1]
    sign = wide >> np.uint64(row.source.bits - 1) << np.uint64(row.target.bits - 1)
    return (sign | moved | np.uint64(infinite | 1 << (stored[1] - 1))).astype(code_dtype(row.target))
