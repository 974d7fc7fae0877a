"""Rounding to a format: `round`, and the unchecked `round_into` beneath it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fpsim.backend import numba as kernels, threads
from fpsim.numbers.binary import BinaryFloat
from fpsim.numbers.carriers import rounding_constants as rounding_constants, top_gap_is_wide
from fpsim.numbers.modes import Rounding as Rounding, get_rounding as get_rounding
from fpsim.numbers.system import NumberSystem


@cache
def _kernel(rounding: Rounding, plain: bool, streams: bool) -> Any:
    if rounding is Rounding.STOCHASTIC:
        return kernels.rounding.make_round_stochastically(plain, streams)
    return kernels.rounding.make_round_array(rounding.code, plain, streams)


#: Bytes from which results bypass the cache: what exceeds it would only push other data out.
_STREAM_FROM = 16 << 20


def draw_key(seed: int, call: int = 0) -> int:
    """The 64-bit key of one call's stochastic draws: a hash of the seed and the number of the call."""
    import hashlib

    digest = hashlib.blake2b(f"{seed},{call}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def seed_key(rounding: Rounding, seed: int | None) -> int:
    """The key of the draws of `rounding`, 0 where it draws nothing.

    Raises ValueError for a seed that is missing or has no use, TypeError for one that is no int.
    """
    if rounding is not Rounding.STOCHASTIC:
        if seed is not None:
            raise ValueError(f'seed= is for rounding="stochastic" and has no use with "{rounding}"')
        return 0
    if seed is None:
        raise ValueError('rounding="stochastic" needs seed=, an int')
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be an int, got {seed!r}")
    return draw_key(int(seed))


def round_into(
    x: np.ndarray, out: np.ndarray, fmt: NumberSystem, rounding: Rounding, key: int = 0, first_element: int = 0
) -> None:
    """Round `x` to `fmt` into `out`: float32 or float64 arrays of one dtype and shape, the same array included.

    Nothing is checked. Non-contiguous arrays are copied.
    """
    if not isinstance(fmt, BinaryFloat):
        fmt.round_into(x, out, rounding, key, first_element)
        return
    if not fmt.has_zero:
        _round_scale_into(x, out, fmt, rounding, key, first_element)
        return
    row = rounding_constants(fmt, rounding, x.dtype)
    if row is None:
        with np.errstate(invalid="ignore"):  # converting a signaling NaN is no error here
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
        plain = plain and not top_gap_is_wide(fmt)
    if target.size < threads.SPLIT_ABOVE and target.nbytes < _STREAM_FROM and rounding is not Rounding.STOCHASTIC:
        _kernel(rounding, plain, False)(source, target, row)
        return
    past_cache = target.nbytes >= _STREAM_FROM and source.ctypes.data != target.ctypes.data

    def round_range(begin: int, end: int) -> None:
        first, last = _streamable(target[begin:end]) if past_cache else (0, 0)
        pieces = ((begin, begin + first, False), (begin + first, begin + last, True), (begin + last, end, False))
        for start, stop, streams in pieces:
            if start < stop:
                extra = _stochastic_arguments(row, key, first_element + start) if rounding is Rounding.STOCHASTIC else ()
                _kernel(rounding, plain, streams)(source[start:stop], target[start:stop], row, *extra)

    threads.run(round_range, threads.parts(target.size, target.size))


def _stochastic_arguments(row: np.ndarray, key: int, first_element: int) -> tuple[np.ndarray, np.uint64, np.int64]:
    draws = np.empty(kernels.rounding.BLOCK, np.uint32 if row.dtype == np.int32 else np.int64)
    return draws, np.uint64(key), np.int64(first_element)


def _streamable(target: np.ndarray) -> tuple[int, int]:
    """The range of a flat array that starts on a whole vector and holds whole blocks."""
    first = -target.ctypes.data % kernels.intrinsics.VECTOR_BYTES // target.itemsize
    return first, first + (target.size - first) // kernels.rounding.STREAMED_BLOCK * kernels.rounding.STREAMED_BLOCK


def _round_scale_into(
    x: np.ndarray, out: np.ndarray, fmt: BinaryFloat, rounding: Rounding, key: int, first_element: int
) -> None:
    """A scale has no zero, no sign and no infinity: those are NaN, and what lies below its least value becomes it."""
    with np.errstate(invalid="ignore"):  # converting a signaling NaN is no error here
        wide = x.astype(np.float64)
    outside = ~(wide > 0) | np.isinf(wide)
    signed = fmt.replace(precision=1, specials="ieee", signed=True)
    np.maximum(wide, fmt.min_normal, out=wide)
    round_into(wide, wide, signed, rounding, key, first_element)
    wide[outside | np.isinf(wide)] = np.nan
    out[...] = wide
