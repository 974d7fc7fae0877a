"""Rounding with draws that a test chooses, and the draws that a call with a seed makes."""

import numpy as np

from fpsim.backend.numba import random as kernel_random, rounding as kernels
from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.intrinsics import as_bits, as_float
from fpsim.numbers.rounding import draw_key
from tests import oracles


@kernel
def round_with(values, draws, row, out):
    """Stochastic rounding of float32 (draws: uint32) or float64 (int64) with the draws given."""
    constants = kernels.load(row)
    for i in range(out.size):
        out[i] = as_float(kernels.round_bits_stochastically(as_bits(values[i]), constants, draws[i], False))


@kernel
def draw_of(key, element, step):
    """The draw of one element's step."""
    return kernel_random.step_draw(kernel_random.element_hash(key, element), step)


@kernel
def known_draws(key, count, out):
    for i in range(count):
        out[i] = draw_of(key, np.int64(i), np.uint32(0))


def draws_of(seed, count):
    """The draws of elements 0 ... count - 1 in a call with this seed."""
    out = np.empty(count, np.int64)
    known_draws(np.uint64(draw_key(seed)), count, out)
    return out


def decide(exact, fmt, draw):
    """What a nonzero rational rounds to with this draw."""
    lower, upper, threshold = oracles.stochastic(exact, fmt)
    return upper if draw < threshold else lower


def decide_operation(name, values, fmt, draw):
    """What an operation delivers with this draw."""
    exact = oracles.EXACT[name](*(oracles.operand(float(x), fmt) for x in values))
    if not isinstance(exact, tuple):
        return oracles.round_float(exact, fmt, None)
    return decide(exact[0], fmt, draw) if exact[0] else oracles.zero(fmt, exact[1])
