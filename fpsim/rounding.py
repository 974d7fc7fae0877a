"""Rounding to a format: modes, the constants that kernels get, and `round`."""

from __future__ import annotations

import enum
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fpsim import _checks, threads
from fpsim.formats import Format, get_format


class Rounding(enum.Enum):
    """The rounding modes (IEEE 754-2019, section 4.3, and two more).

    ODD truncates and sets the last bit of an inexact result, so that a later rounding to fewer bits is right.
    STOCHASTIC takes the upper neighbor with the probability of the distance from the lower one.
    """

    NEAREST_EVEN = "nearest-even"
    NEAREST_AWAY = "nearest-away"
    TOWARD_ZERO = "toward-zero"
    UP = "up"
    DOWN = "down"
    ODD = "odd"
    STOCHASTIC = "stochastic"

    @property
    def code(self) -> int:
        """The number that stands for the mode inside kernels."""
        return _CODES[self]

    def __str__(self) -> str:
        return self.value


_CODES = {mode: code for code, mode in enumerate(Rounding)}
_BY_NAME = {mode.value: mode for mode in Rounding}


def get_rounding(rounding: str | Rounding) -> Rounding:
    """The `Rounding` of that name.

    Raises
    ------
    ValueError : for an unknown name; it lists what there is.
    """
    if isinstance(rounding, Rounding):
        return rounding
    mode = _BY_NAME.get(rounding) if isinstance(rounding, str) else None
    if mode is None:
        raise ValueError(f"unknown rounding {rounding!r}: known are {', '.join(_BY_NAME)}")
    return mode


class _Carrier:
    """float32 or float64 as the dtype that a narrower format's values are held in."""

    def __init__(self, floating: type, integer: type, precision: int, emin: int, emax: int):
        self.floating, self.integer = floating, integer
        self.precision, self.emin, self.emax = precision, emin, emax
        self.sign = np.iinfo(integer).min

    def bits(self, value: float) -> int:
        """The bits of a value that the carrier holds exactly."""
        return int(np.array(value, dtype=self.floating).view(self.integer))

    def first_reaching(self, bound: Fraction, inclusive: bool) -> int:
        """The bits of the carrier's least positive magnitude >= bound (> bound if not inclusive), or infinity's."""
        infinity = self.bits(float("inf"))
        if bound >= Fraction(2) ** (self.emax + 1):
            return infinity
        try:
            with np.errstate(over="ignore"):
                found = min(self.bits(float(bound)), infinity - 1)
        except OverflowError:  # a bound between float64's largest value and 2^1024
            found = infinity - 1

        def reaches(bits: int) -> bool:
            value = Fraction(float(np.array(bits, dtype=self.integer).view(self.floating)))
            return value >= bound if inclusive else value > bound

        while found > 0 and reaches(found - 1):
            found -= 1
        while found < infinity and not reaches(found):
            found += 1
        return found

    def rounds(self, fmt: Format, rounding: Rounding) -> bool:
        """Whether the kernel for this carrier rounds to the format: no number it uses leaves the carrier's range."""
        stochastic = rounding is Rounding.STOCHASTIC
        emin = fmt.emin - 1 if fmt.flush and stochastic else fmt.emin
        # A draw of 32 bits cannot be shifted out of 32: float32 needs a bit to drop.
        return (
            fmt.precision <= self.precision - int(stochastic and self.precision < 32)
            and emin >= self.emin
            and max(fmt.emax, fmt.emin + self.precision - fmt.precision) <= self.emax
        )


_CARRIERS = {
    np.dtype(np.float32): _Carrier(np.float32, np.int32, 24, -126, 127),
    np.dtype(np.float64): _Carrier(np.float64, np.int64, 53, -1022, 1023),
}
_FLOAT32, _FLOAT64 = _CARRIERS


@lru_cache(maxsize=1024)
def rounding_constants(fmt: Format, rounding: Rounding, dtype: np.dtype) -> np.ndarray | None:
    """The row of integers that a rounding kernel gets (named in `_kernels/rounding.py`), read-only.

    None where the carrier's own range is too small for the kernel's intermediates.
    """
    from fpsim._kernels import rounding as kernels

    carrier = _CARRIERS[dtype]
    if not carrier.rounds(fmt, rounding):
        return None
    p = fmt.precision
    dropped = carrier.precision - p
    normal_top = Fraction(fmt.max_finite)
    ulp = Fraction(2) ** (fmt.emax - p + 1)
    infinity, nan = carrier.bits(float("inf")), carrier.bits(float("nan"))
    overflow = carrier.bits(fmt.max_finite) if fmt.saturate else infinity if fmt.has_infinity else nan
    max_finite = carrier.bits(fmt.max_finite)
    outward = (carrier.first_reaching(normal_top, inclusive=False), overflow)
    inward = (outward[0], max_finite)
    flush_at = Fraction(2) ** fmt.emin
    half_below, all_below = Fraction(2) ** (fmt.emin - p - 1), Fraction(2) ** (fmt.emin - p)
    last_is_odd = p == 1 or (normal_top / ulp) % 2 == 1
    nearest_flush = carrier.first_reaching(flush_at - half_below, inclusive=True)
    inward_flush = carrier.first_reaching(flush_at, inclusive=True)
    outward_flush = carrier.first_reaching(flush_at - all_below, inclusive=False)
    match rounding:
        case Rounding.NEAREST_EVEN | Rounding.NEAREST_AWAY:
            inclusive = last_is_odd or rounding is Rounding.NEAREST_AWAY
            positive = negative = (carrier.first_reaching(normal_top + ulp / 2, inclusive), overflow)
            flush = (nearest_flush, nearest_flush)
        case Rounding.TOWARD_ZERO | Rounding.ODD:
            positive = negative = inward
            flush = (inward_flush, inward_flush)
        case Rounding.UP:
            positive, negative = outward, inward
            flush = (outward_flush, inward_flush)
        case Rounding.DOWN:
            positive, negative = inward, outward
            flush = (inward_flush, outward_flush)
        case Rounding.STOCHASTIC:
            positive = negative = (infinity, overflow)
            # The first is compared with the magnitude before rounding, the second with the result.
            flush = (inward_flush if fmt.flush == "before" else 0, inward_flush)
    if fmt.flush is None:
        flush = (0, 0)
    elif fmt.flush == "before" and rounding is not Rounding.STOCHASTIC:
        flush = (inward_flush, inward_flush)
    takes_fixed_quantum = fmt.emin > carrier.emin and not (fmt.flush and rounding is Rounding.STOCHASTIC)
    row: np.ndarray = np.zeros(kernels.LENGTH, dtype=carrier.integer)
    row[kernels.DROPPED] = dropped
    row[kernels.TIE] = dropped > 0 and p > 1
    # With one digit no neighbor is even among normal numbers: the larger is delivered (IEEE 754-2019, section 4.3.1).
    row[kernels.NEAREST] = (1 << dropped >> 1) - (dropped > 0 and p > 1)
    row[kernels.SMALL_BELOW] = carrier.bits(fmt.min_normal) if takes_fixed_quantum else 0
    row[kernels.ANCHOR] = carrier.bits(2.0 ** (fmt.emin + dropped))
    row[kernels.OVERFLOW_POSITIVE], row[kernels.OVERFLOWED_POSITIVE] = positive
    row[kernels.OVERFLOW_NEGATIVE], row[kernels.OVERFLOWED_NEGATIVE] = negative
    row[kernels.INFINITY] = infinity
    row[kernels.INFINITE] = overflow
    row[kernels.QUIET] = 1 << (carrier.precision - 2)
    row[kernels.FLUSH_POSITIVE], row[kernels.FLUSH_NEGATIVE] = flush
    row[kernels.SIGN] = carrier.sign
    row[kernels.ZERO_SIGN] = carrier.sign if fmt.has_negative_zero else 0
    row[kernels.ONE] = 1
    row[kernels.MAX_FINITE] = max_finite
    top_dropped = dropped + int(_top_gap_is_wide(fmt))
    for left, right, count in (
        (kernels.DRAW_LEFT, kernels.DRAW_RIGHT, dropped),
        (kernels.TOP_LEFT, kernels.TOP_RIGHT, top_dropped),
    ):
        row[left] = max(count - 32, 0)
        row[right] = max(32 - count, 0)
    row[kernels.TWO_64] = carrier.bits(2.0**64)
    row[kernels.DRAW_SCALE] = carrier.bits(2.0 ** (-32 - (fmt.emin - p + 1))) if takes_fixed_quantum else 0
    row.setflags(write=False)
    return row


@cache
def _kernel(rounding: Rounding, plain: bool, stream: bool) -> Any:
    from fpsim._kernels import rounding as kernels

    if rounding is Rounding.STOCHASTIC:
        return (kernels.make_stream_stochastically if stream else kernels.make_round_stochastically)(plain)
    return (kernels.make_round_stream if stream else kernels.make_round_array)(rounding.code, plain)


def _top_gap_is_wide(fmt: Format) -> bool:
    """Whether 2^(emax+1) lies two ulps above max_finite, the code between being a NaN."""
    return fmt.stochastic_top - fmt.max_finite > 2.0 ** (fmt.emax - fmt.precision + 1)


#: Bytes from which results bypass the cache: what exceeds it would only push other data out.
_STREAM_FROM = 16 << 20


def draw_key(seed: int, call: int = 0) -> int:
    """The 64-bit key of one call's stochastic draws: a hash of the seed and the number of the call."""
    import hashlib

    digest = hashlib.blake2b(f"{seed},{call}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def round_into(
    x: np.ndarray, out: np.ndarray, fmt: Format, rounding: Rounding, key: int = 0, first_element: int = 0
) -> None:
    """Round `x` to `fmt` into `out`: float32 or float64 arrays of one dtype and shape, the same array included.

    Nothing is checked. Non-contiguous arrays are copied.
    """
    if not fmt.has_zero:
        _round_scale_into(x, out, fmt, rounding, key, first_element)
        return
    row = rounding_constants(fmt, rounding, x.dtype)
    if row is None:
        wide = x.astype(np.float64)
        round_into(wide, wide, fmt, rounding, key, first_element)
        out[...] = wide
        return
    if not out.flags.c_contiguous:
        fresh = np.empty(x.shape, x.dtype)
        round_into(x, fresh, fmt, rounding, key, first_element)
        out[...] = fresh
        return
    source = (x if x.flags.c_contiguous else np.ascontiguousarray(x)).reshape(-1).view(row.dtype)
    target = out.reshape(-1).view(row.dtype)
    plain = fmt.flush is None and fmt.has_negative_zero
    if rounding is Rounding.STOCHASTIC:
        plain = plain and not _top_gap_is_wide(fmt)
    past_cache = target.nbytes >= _STREAM_FROM and source.ctypes.data != target.ctypes.data

    def round_range(begin: int, end: int) -> None:
        first, last = _streamable(target[begin:end]) if past_cache else (0, 0)
        pieces = ((begin, begin + first, False), (begin + first, begin + last, True), (begin + last, end, False))
        for start, stop, stream in pieces:
            if start < stop:
                extra = (
                    _stochastic_arguments(row, key, first_element + start) if rounding is Rounding.STOCHASTIC else ()
                )
                _kernel(rounding, plain, stream)(source[start:stop], target[start:stop], row, *extra)

    threads.run(round_range, threads.parts(target.size, target.size))


def _stochastic_arguments(row: np.ndarray, key: int, first_element: int) -> tuple[np.ndarray, np.uint64, np.int64]:
    from fpsim._kernels.rounding import BLOCK

    draws = np.empty(BLOCK, np.uint32 if row.dtype == np.int32 else np.int64)
    return draws, np.uint64(key), np.int64(first_element)


def _streamable(target: np.ndarray) -> tuple[int, int]:
    """The range of a flat array that starts on a whole vector and holds whole blocks."""
    from fpsim._kernels.compiler import VECTOR_BYTES
    from fpsim._kernels.rounding import STREAMED_BLOCK

    first = -target.ctypes.data % VECTOR_BYTES // target.itemsize
    return first, first + (target.size - first) // STREAMED_BLOCK * STREAMED_BLOCK


def _round_scale_into(
    x: np.ndarray, out: np.ndarray, fmt: Format, rounding: Rounding, key: int, first_element: int
) -> None:
    """A scale has no zero, no sign and no infinity: those are NaN, and what lies below its least value becomes it."""
    if rounding is Rounding.ODD:
        raise ValueError(f"{fmt.name} cannot be rounded to odd: a significand of one bit is never even")
    wide = x.astype(np.float64)
    outside = ~(wide > 0) | np.isinf(wide)
    signed = fmt.replace(precision=1, specials="ieee", signed=True)
    np.maximum(wide, fmt.min_normal, out=wide)
    round_into(wide, wide, signed, rounding, key, first_element)
    wide[outside | np.isinf(wide)] = np.nan
    out[...] = wide


def round(
    x: Any,
    fmt: Any,
    rounding: str | Rounding = "nearest-even",
    *,
    seed: int | None = None,
    out: Any = None,
) -> Any:
    """Round to a format's values.

    Parameters
    ----------
    x : a Python number, a NumPy array or scalar (float16, float32, float64), or a torch tensor on the CPU (those and
        bfloat16), of any shape.
    fmt : what `get_format` takes.
    rounding : a mode or its name.
    seed : needed by "stochastic" and refused elsewhere. Element i of the result, in row-major order, draws from
        (seed, i) alone.
    out : an array or tensor of x's type, dtype and shape to write to; it may be x.

    Returns
    -------
    What x is, of the same type, dtype and shape. From float64 there is one rounding, never two. NaN stays NaN
    (also for a format without one, which `encode` then refuses); infinities stay, or become NaN or +-max_finite
    where the format has none or saturates; -0 stays unless the format has none. Overflow follows the mode
    (IEEE 754-2019, sections 4.3 and 7.4).

    Raises
    ------
    ValueError : unknown format or mode, a dtype that cannot hold the format's values, a seed missing or without
        use, a process that flushes subnormals to zero.
    TypeError : integers, booleans and complex numbers in arrays, or another type.
    """
    target, mode = get_format(fmt), get_rounding(rounding)
    if mode is Rounding.STOCHASTIC:
        if seed is None:
            raise ValueError('rounding="stochastic" needs seed=, an int')
    elif seed is not None:
        raise ValueError(f'seed= is for rounding="stochastic" and has no use with "{mode}"')
    key = draw_key(seed) if seed is not None else 0
    _checks.refuse_flush_to_zero()
    array, wrap = _checks.as_carrier(x, target, "x")
    if out is None:
        result = np.empty(array.shape, array.dtype)
        round_into(array, result, target, mode, key)
        return wrap(result)
    destination = _checks.out_array(out, x)
    if destination.dtype == array.dtype:
        if np.may_share_memory(array, destination) and array.ctypes.data != destination.ctypes.data:
            array = array.copy()
        round_into(array, array if destination is array else destination, target, mode, key)
    else:
        result = np.empty(array.shape, array.dtype)
        round_into(array, result, target, mode, key)
        destination[...] = result
    return out
