"""Sweeps of add, sub, mul, div, sqrt: all pairs of fp16 and of the 8-bit formats, and the edges of the wide ones."""

import numpy as np
import torch

import fpsim
from fpsim.numbers.rounding import Rounding
from tests import generators, integer_oracle, oracles
from tests.exhaustive.sweep import Result, sweep, total
from tests.strategies import (
    COMPUTING,
    DETERMINISTIC,
    NARROW,
    VARIANTS,
    defined,
    every_value,
    fits_float32,
)

SECTION = "Arithmetic"
ROWS, TOGETHER = 64, 8
BLOCK = 250_000
PAIRWISE = ("add", "sub", "mul", "div")


def all_rows(name, start):
    """64 values of fp16 with all values of fp16, few of them at once, so that what is compared is in the cache."""
    codes = np.arange(2**16, dtype=np.uint16)
    found = Result(0, 0)
    for first in range(start, start + ROWS, TOGETHER):
        left, right = (part.view(np.float16) for part in (codes[first : first + TOGETHER, None], codes[None, :]))
        want = getattr(torch, name)(torch.from_numpy(left), torch.from_numpy(right)).float().numpy()
        got = getattr(fpsim, name)(left.astype(np.float32), right.astype(np.float32), "fp16")
        found += Result(want.size, integer_oracle.differing(got, want))
    return found


def _all_pairs(name):
    return total(all_rows, ((name, start) for start in range(0, 2**16, ROWS)))


for _name in PAIRWISE:
    sweep(SECTION, f"all 2^32 pairs of fp16: {_name}, nearest-even", "torch.half, elementwise")(
        lambda name=_name: _all_pairs(name)
    )


def pairs_of(fmt, name):
    """All pairs of values, in every deterministic mode; pairs with equal exact results are rounded once.

    Two such results that differ, differ in float64 too: they are dyadic numbers of at most 34 bits, or quotients of
    significands of at most 5 bits. Zeros are told apart by the signs of the operands.
    """
    values = every_value(fmt)
    a, b = (np.ravel(part) for part in np.meshgrid(values, values, indexing="ij"))
    with np.errstate(all="ignore"):
        key = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name](a, b).view(np.int64)
    key = key + np.where(key << 1 == 0, 2 * np.signbit(a) + 4 * np.signbit(b), 0)
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    found = Result(0, 0)
    pairs = np.stack([a, b], axis=1)[first].tolist()
    distinct = np.array([oracles.operate_in(DETERMINISTIC, name, pair, fmt) for pair in pairs])
    for mode, want in zip(DETERMINISTIC, distinct.T[:, inverse], strict=True):
        for dtype in (np.float32, np.float64):
            got = getattr(fpsim, name)(a.astype(dtype), b.astype(dtype), fmt, mode)
            found += Result(a.size, integer_oracle.differing(got, want.astype(dtype)))
    return found


@sweep(
    SECTION,
    "all pairs of each 8-, 6- and 4-bit format: add, sub, mul, div, every deterministic mode, from float32 and float64",
    "exact rationals",
)
def narrow_pairs():
    return total(pairs_of, ((fmt, name) for fmt in NARROW for name in PAIRWISE))


def all_roots(fmt):
    values = every_value(fmt).astype(np.float32)
    wanted = zip(DETERMINISTIC, integer_oracle.results_in(DETERMINISTIC, "sqrt", [values], fmt), strict=True)
    differing = sum(integer_oracle.differing(fpsim.sqrt(values, fmt, mode), want) for mode, want in wanted)
    return Result(values.size * len(DETERMINISTIC), differing)


@sweep(SECTION, "sqrt of all values of the formats up to 19 bits, every deterministic mode", "64-bit integers")
def roots():
    return total(all_roots, ((fmt,) for fmt in COMPUTING if fmt.bits <= 19))


def at_random(fmt, name, modes, count, seed):
    """Hard operands (`generators.fill`), the same ones in each mode."""
    dtype = np.float32 if fits_float32(fmt) else np.float64
    found = Result(0, 0)
    for part in range(0, count, BLOCK):
        operands = generators.operands(name, fmt, BLOCK, 1000 * seed + part // BLOCK, dtype)
        for mode, want in zip(modes, integer_oracle.results_in(modes, name, operands, fmt), strict=True):
            found += Result(want.size, integer_oracle.differing(getattr(fpsim, name)(*operands, fmt, mode), want))
    return found


OPERATIONS = (*PAIRWISE, "sqrt", "fma")


def _modes(fmt):
    return [mode for mode in DETERMINISTIC if defined(fmt, mode)]


def _every_operation(formats, count):
    cases = [(fmt, name) for fmt in formats for name in OPERATIONS]
    return total(at_random, [(fmt, name, _modes(fmt), count, seed) for seed, (fmt, name) in enumerate(cases)])


WIDE = [fmt for fmt in COMPUTING if fmt.precision >= 8]


@sweep(
    SECTION,
    "fp16, bf16, tf32, fp32: 3 * 10^6 operands near underflow, overflow, ties and cancellation for each of add, sub, mul, div, "
    "sqrt, fma and deterministic mode",
    "64-bit integers",
)
def wide_edges():
    return _every_operation(WIDE, 3_000_000)


@sweep(SECTION, "fp16: 10^8 hard pairs for each of add and sub in the directed modes, nearest-away and odd", "64-bit integers")
def directed_sums():
    fp16 = fpsim.get_format("fp16")
    modes = [mode for mode in DETERMINISTIC if mode is not Rounding.NEAREST_EVEN]
    return total(at_random, [(fp16, name, modes, 2_000_000, seed) for name in ("add", "sub") for seed in range(50)])


@sweep(
    SECTION,
    "saturating, flushing and custom formats: 10^6 operands for each of add, sub, mul, div, sqrt, fma and deterministic mode",
    "64-bit integers",
)
def variant_operations():
    return _every_operation(VARIANTS, 1_000_000)


def rationals(fmt, name, mode, count, seed):
    """The integer oracle itself, on the same kinds of operands."""
    operands = generators.operands(name, fmt, count, seed, np.float32)
    rows = zip(*(x.tolist() for x in operands), strict=True)
    want = np.array([oracles.operate(name, row, fmt, mode) for row in rows], np.float32)
    return Result(count, integer_oracle.differing(integer_oracle.results(name, operands, fmt, mode), want))


@sweep(
    "Oracles", "the integer oracle's add, sub, mul, div, sqrt, fma: hard operands of fp16, bf16, tf32, fp32", "exact rationals"
)
def oracle_of_arithmetic():
    cases = [(fmt, name, mode) for fmt in WIDE for name in OPERATIONS for mode in DETERMINISTIC]
    return total(rationals, [(*case, 1000, seed) for seed, case in enumerate(cases)])
