"""Counter-based random bits: a draw is a function of (key, element, step), never of shared state."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import inlined
from fpsim.backend.numba.intrinsics import int_add, int_mul, int_xor, shift_right

_M1, _M2 = np.uint32(0x21F0AAAD), np.uint32(0xD35A2D97)
_S16, _S15, _S32 = np.uint32(16), np.uint32(15), np.uint64(32)
_ONE64, _RUN = np.uint64(1), np.uint64(1 << 32)
_WEYL, _ONES = np.uint32(0x9E3779B9), np.uint32(0xFFFFFFFF)


@inlined
def mix32(x: np.uint32) -> np.uint32:
    """A bijection of 32 bits whose every output bit depends on every input bit (xorshift-multiply, three rounds)."""
    x = int_mul(int_xor(x, shift_right(x, _S16)), _M1)
    x = int_mul(int_xor(x, shift_right(x, _S15)), _M2)
    return int_xor(x, shift_right(x, _S15))


@inlined
def _high(key: np.uint64, element: np.uint64) -> np.uint32:
    return int_mul(int_xor(np.uint32(element >> _S32), np.uint32(key >> _S32)), _WEYL)


@inlined
def element_hash(key: np.uint64, element: np.int64) -> np.uint32:
    """32 bits for one element of one call, from the key's 64 bits and its index's 64, for `step_draw` to mix."""
    return int_add(mix32(int_xor(np.uint32(element), np.uint32(key))), _high(key, np.uint64(element)))


@inlined
def _hash_run(low: np.uint32, high: np.uint32, key: np.uint32, out: Any) -> None:
    for i in range(out.size):
        out[i] = int_add(mix32(int_xor(int_add(low, np.uint32(i)), key)), high)


@inlined
def hash_range(key: np.uint64, first: np.int64, out: Any) -> None:
    """`element_hash` of the elements from `first` on: runs in which the upper half of the index is constant."""
    done = 0
    while done < out.size:
        element = np.uint64(first + done)
        run = min(out.size - done, np.int64(_RUN - (element & (_RUN - _ONE64))))
        _hash_run(np.uint32(element), _high(key, element), np.uint32(key), out[done : done + run])
        done += run


@inlined
def step_draw(element_bits: np.uint32, step: np.uint32) -> np.uint32:
    """32 random bits for one step of an element's accumulation: the step well mixed, the two together once more.

    The mixed step is the same for all elements, so that a kernel computes it once for many of them.
    """
    x = int_add(element_bits, mix32(step))
    x = int_mul(int_xor(x, shift_right(x, _S16)), _M1)
    return int_xor(int_xor(x, shift_right(x, _S15)), _ONES)
