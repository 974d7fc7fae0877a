"""Block-scaled products (MX, NVFP4) as a unit leaves them in its registers, and the quantizers that make their operands."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.accumulation.instructions import ScaledInstruction, Unit
from fpsim.accumulation.units import get_unit
from fpsim.backend.subnormals import refuse_flush_to_zero
from fpsim.numbers.formats import FP32, Format, get_format
from fpsim.numbers.operands import operand
from fpsim.numbers.rounding import Rounding, round_into
from fpsim.sums.units.products import warn_once
from fpsim.sums.units.scaled import scaled_product_into_fp32


def scaled_product(
    a: Any, b: Any, a_scale: Any, b_scale: Any, *, kind: str, fmt: Any = None, unit: str = "b200", addend: Any = None
) -> np.ndarray:
    """addend + (a with its scales) @ (b with its scales) through a unit, as a float32 array.

    Parameters
    ----------
    a, b : (m, k) and (k, n) arrays or tensors on the CPU of values of `fmt`.
    a_scale, b_scale : (m, ceil(k / s)) and (ceil(k / s), n) values of the scale's format, one for every s terms: of
        float8_e8m0fnu and s = 32 for "mxf8f6f4" and "mxf4", of float8_e4m3fn, not negative, and s = 16 for "nvf4".
    kind : the instruction; `fpsim.hardware.get_unit(unit).scaled` lists them.
    fmt : the format of both operands, or a pair for a and b; left out, the only one that the instruction takes.
    addend : what the sum starts from, fp32 values that broadcast to (m, n); left out, +0.

    A NaN scale, a product of zero and infinity, infinities of both signs and NaN give NaN; k = 0 gives the addend.

    Raises
    ------
    ValueError : a unit without such an instruction, an operand format that it does not take, shapes that do not fit, an
        element that is no value of its format, a negative scale.
    """
    row = _instruction(get_unit(unit), kind)
    formats = _formats(row, fmt)
    refuse_flush_to_zero()
    left, right = (_checked(x, fmt_of, name) for x, fmt_of, name in ((a, formats[0], "a"), (b, formats[1], "b")))
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise ValueError(f"a and b must be (m, k) and (k, n), got {left.shape} and {right.shape}")
    (rows, terms), columns = left.shape, right.shape[1]
    blocks = -(-terms // row.scaled)
    shape = (rows, columns)
    scales = _scale(a_scale, row, "a_scale", (rows, blocks)), _scale(b_scale, row, "b_scale", (blocks, columns))
    start = np.zeros(shape)
    if addend is not None:
        checked = _checked(addend, FP32, "addend")
        try:
            start = np.array(np.broadcast_to(checked, shape))
        except ValueError:
            raise ValueError(f"addend {checked.shape} does not broadcast to {shape}") from None
    warn_once(unit, row.kind, row.verified, f"unit {unit} with {row.kind} operands is unconfirmed: {row.source}")
    if 0 in shape or terms == 0:
        return start.astype(np.float32)
    wide = np.repeat(scales[0], row.scaled, 1)[:, :terms], np.repeat(scales[1], row.scaled, 0)[:terms]
    return scaled_product_into_fp32(left, right, *wide, formats, row, start).astype(np.float32)


def quantize_blocks(x: Any, *, kind: str, fmt: Any = None, axis: int = -1, unit: str = "b200") -> tuple[np.ndarray, np.ndarray]:
    """(values, scales): x / scale rounded to nearest even and saturated, and one scale for every block along an axis.

    x     finite float32 or float64 numbers, (m, k) for a with axis 1, (k, n) for b with axis 0
    kind, fmt, unit  as for `scaled_product`; one format

    A power-of-two scale is 2^(floor(log2(largest)) - emax), emax the element format's (OCP Microscaling Formats 1.0, section
    6.3); an e4m3fn scale is largest / 6 rounded to nearest even, not below its least value. A block of zeros has scale 1.
    Raises ValueError for other shapes, for NaN and infinities, and what `scaled_product` raises for its arguments.
    """
    row = _instruction(get_unit(unit), kind)
    target, _ = _formats(row, fmt)
    wide = np.asarray(x, np.float64)
    if wide.ndim != 2 or axis not in (-2, -1, 0, 1) or not np.isfinite(wide).all():
        raise ValueError(f"x must be a matrix of finite numbers and axis 0 or 1, got shape {wide.shape}, axis {axis}")
    turned = axis in (-2, 0)
    lines = wide.T if turned else wide
    blocks = -(-lines.shape[1] // row.scaled)
    padded = np.pad(lines, ((0, 0), (0, blocks * row.scaled - lines.shape[1]))).reshape(len(lines), blocks, row.scaled)
    largest = np.abs(padded).max(axis=2, initial=0.0)
    scales = np.where(largest == 0, 1.0, _scales_for(largest, row, target))
    values = padded / scales[..., None]
    values = np.clip(values, -target.max_finite, target.max_finite)
    round_into(values, values, target, Rounding.NEAREST_EVEN)
    flat = values.reshape(len(lines), -1)[:, : lines.shape[1]]
    both = (flat.T, scales.T) if turned else (flat, scales)
    return np.ascontiguousarray(both[0], np.float32), np.ascontiguousarray(both[1], np.float32)


def _scales_for(largest: np.ndarray, row: ScaledInstruction, target: Format) -> np.ndarray:
    system = row.scale_format
    if not system.has_zero:
        exponent = np.frexp(np.where(largest == 0, 1.0, largest))[1] - 1 - target.emax
        return np.ldexp(1.0, np.clip(exponent, system.emin, system.emax))
    scales = np.minimum(largest / target.max_finite, system.max_finite)
    round_into(scales, scales, system, Rounding.NEAREST_EVEN)
    return np.maximum(scales, system.min_subnormal)


def _instruction(unit: Unit, kind: str) -> ScaledInstruction:
    for row in unit.scaled:
        if row.kind == kind:
            return row
    kinds = ", ".join(row.kind for row in unit.scaled) or "none"
    raise ValueError(f"unit {unit.name} has no scaled instruction {kind!r}; it has {kinds}")


def _formats(row: ScaledInstruction, fmt: Any) -> tuple[Format, Format]:
    if fmt is None and len(row.operands) > 1:
        raise ValueError(f"fmt: {row.kind} takes {', '.join(row.operands)}; name one, or a pair for a and b")
    pair = fmt if isinstance(fmt, (tuple, list)) else (fmt, fmt)
    if len(pair) != 2:
        raise ValueError(f"fmt must be a format or a pair of formats, got {fmt!r}")
    formats = [get_format(row.operands[0] if fmt is None else name) for name in pair]
    allowed = [get_format(name) for name in row.operands]
    for one in formats:
        if one not in allowed:
            raise ValueError(f"fmt: {row.kind} takes {', '.join(row.operands)}, not {one.name}")
    return formats[0], formats[1]


def _checked(x: Any, fmt: Format, name: str) -> np.ndarray:
    array, _ = operand(x, fmt, name)
    return array.astype(np.float64)


def _scale(x: Any, row: ScaledInstruction, name: str, shape: tuple[int, int]) -> np.ndarray:
    array, _ = operand(x, row.scale_format, name)
    if array.shape != shape:
        raise ValueError(f"{name} must be {shape}, one scale for every {row.scaled} terms, got {array.shape}")
    if (array < 0).any():
        raise ValueError(f"{name} has a negative element; scales have no sign")
    return array.astype(np.float64)
