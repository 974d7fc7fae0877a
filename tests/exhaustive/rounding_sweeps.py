"""Sweeps of rounding: all of float32 into fp16 and bf16, and every named format in every mode."""

import ml_dtypes
import numpy as np
import torch

import fpsim
from tests import generators, integer_oracle, oracles
from tests.exhaustive.sweep import Result, sweep, total
from tests.strategies import DETERMINISTIC, NAMED, VARIANTS, defined, edges, fits_float32, random_values

SECTION = "Rounding"
CHUNK, PART = 2**23, 2**16
#: Exponent fields of float32 below, within and above fp16's subnormal numbers, and the last one below its overflow.
SOME_EXPONENTS = (102, 108, 113, 118, 123, 128, 135, 142)
RANDOM = 10_000_000
BLOCK = 250_000
FORMATS = [fmt for fmt in NAMED if fmt.name != "fp64"]
LISTED = [fmt for fmt in FORMATS if fmt.bits <= 19]


def modes_of(fmt):
    return [mode for mode in DETERMINISTIC if defined(fmt, mode)]


def whole_range(start, fmt, oracle):
    """`oracle` of a chunk of all float32 patterns, a block at a time, so that what is compared is in the cache."""
    found = Result(0, 0)
    for first in range(start, start + CHUNK, PART):
        x = np.arange(first, first + PART, dtype=np.uint32).view(np.float32)
        with np.errstate(all="ignore"):
            found += Result(x.size, integer_oracle.differing(fpsim.round(x, fmt), oracle(x)))
    return found


def half_of_torch(x):
    return torch.from_numpy(x).half().float().numpy()


def half_of_numpy(x):
    return x.astype(np.float16).astype(np.float32)


def range_to_fp16(start):
    """torch converts all; NumPy, whose conversion is slow where it raises a flag, one chunk in 32: a chunk is an exponent."""
    found = whole_range(start, "fp16", half_of_torch)
    if start // CHUNK % 256 in SOME_EXPONENTS:
        found += Result(0, whole_range(start, "fp16", half_of_numpy).mismatches)
    return found


def range_to_bf16(start):
    return whole_range(start, "bf16", lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32))


@sweep(SECTION, "all 2^32 float32 inputs to fp16, nearest-even", "torch.half (and NumPy float16 on 1 in 32)")
def all_to_fp16():
    return total(range_to_fp16, ((start,) for start in range(0, 2**32, CHUNK)))


@sweep(SECTION, "all 2^32 float32 inputs to bf16, nearest-even", "ml_dtypes bfloat16")
def all_to_bf16():
    return total(range_to_bf16, ((start,) for start in range(0, 2**32, CHUNK)))


def compare(x, fmt, modes):
    wanted = zip(modes, integer_oracle.results_in(modes, "round", [x], fmt), strict=True)
    differing = sum(integer_oracle.differing(fpsim.round(x, fmt, mode), want) for mode, want in wanted)
    return Result(x.size * len(modes), differing)


def edges_of(fmt, dtype):
    return compare(edges(fmt, dtype), fmt, modes_of(fmt))


@sweep(
    SECTION,
    "all values and midpoints of the formats up to 19 bits and their float32 neighbors, every deterministic mode",
    "64-bit integers",
)
def edges32():
    return total(edges_of, ((fmt, np.float32) for fmt in LISTED))


@sweep(
    SECTION,
    "all values and midpoints of the formats up to 19 bits and their float64 neighbors, every deterministic mode",
    "64-bit integers",
)
def edges64():
    return total(edges_of, ((fmt, np.float64) for fmt in LISTED))


def patterns(fmt, dtype, seed):
    """Random bit patterns, the same ones in each mode; in float64 half of them with exponents that the format has."""
    found = Result(0, 0)
    for part in range(0, RANDOM, BLOCK):
        x = generators.patterns(BLOCK, 100 * seed + part // BLOCK, dtype)
        if dtype is np.float64:
            bits = x.view(np.uint64)
            inside = (bits[::2] >> np.uint64(52)).astype(np.uint16) % np.uint16(fmt.emax - fmt.emin + fmt.precision + 5)
            inside += np.uint16(fmt.emin - fmt.precision - 2 + 1023)
            bits[::2] = (bits[::2] & np.uint64(0x800FFFFFFFFFFFFF)) | inside.astype(np.uint64) << np.uint64(52)
        found += compare(x, fmt, modes_of(fmt))
    return found


@sweep(SECTION, "10^7 random float32 patterns for each named format and deterministic mode", "64-bit integers")
def patterns32():
    return total(patterns, ((fmt, np.float32, seed) for seed, fmt in enumerate(FORMATS)))


@sweep(SECTION, "10^7 random float64 patterns for each named format and deterministic mode", "64-bit integers")
def patterns64():
    return total(patterns, ((fmt, np.float64, seed) for seed, fmt in enumerate(FORMATS)))


def around_fp32(mode, seed):
    """Values of fp32, the midpoints above them, and the float64 neighbors of both."""
    fmt, generator = fpsim.get_format("fp32"), np.random.default_rng(seed)
    found = Result(0, 0)
    for _ in range(10):
        low = np.abs(random_values(fmt, RANDOM // 60, generator))
        low = low[np.isfinite(low)]
        middle = low + fpsim.ulp(low, fmt) / 2
        points = np.concatenate([low, middle])
        near = [points, np.nextafter(points, np.inf), np.nextafter(points, -np.inf)]
        x = np.concatenate(near) * generator.choice([-1.0, 1.0], 3 * points.size)
        found += compare(x, fmt, [mode])
    return found


@sweep(SECTION, "values and midpoints of fp32 and their float64 neighbors, every deterministic mode", "64-bit integers")
def neighbors_of_fp32():
    return total(around_fp32, ((mode, seed) for seed, mode in enumerate(DETERMINISTIC)))


def library_patterns(name, seed):
    """Where ml_dtypes is known to differ from the nearest value nothing is asked of it: float8_e8m0fnu below 2^-126."""
    fmt = fpsim.get_format(name)
    dtype = getattr(ml_dtypes, name)
    x = np.concatenate([generators.patterns(RANDOM, seed, np.float32), edges(fmt, np.float32)])
    if not fmt.has_nan:
        x = x[~np.isnan(x)]
    if not fmt.has_zero:
        x = x[~((x > 2.0**-127) & (x < 2.0**-126))]
    with np.errstate(all="ignore"):
        want = x.astype(dtype).astype(np.float32)
    return Result(x.size, integer_oracle.differing(fpsim.round(x, fmt), want))


@sweep(
    SECTION,
    "10^7 random float32 patterns, all values, midpoints and neighbors to each 8-, 6- and 4-bit format, nearest-even",
    "ml_dtypes",
)
def against_the_library():
    return total(library_patterns, ((fmt.name, seed) for seed, fmt in enumerate(NAMED) if fmt.bits <= 8))


def variant_edges(index):
    fmt = VARIANTS[index]
    generator = np.random.default_rng(index)
    found = Result(0, 0)
    for dtype in (np.float32, np.float64) if fits_float32(fmt) else (np.float64,):
        if fmt.bits <= 19:
            found += compare(edges(fmt, dtype), fmt, modes_of(fmt))
        spread = generator.random(500_000) * 2.0 ** -generator.integers(0, 30, 500_000)
        x = random_values(fmt, 500_000, generator) * (1 + spread)
        with np.errstate(over="ignore", invalid="ignore"):
            found += compare(x.astype(dtype), fmt, modes_of(fmt))
    return found


@sweep(
    SECTION, "saturating, flushing and custom formats: edges and random numbers, every deterministic mode", "64-bit integers"
)
def variants():
    return total(variant_edges, ((index,) for index in range(len(VARIANTS))))


def rationals_round(fmt, mode, seed):
    """The integer oracle itself."""
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 2**64, 1400, dtype=np.uint64)
    inside = generator.integers(fmt.emin - fmt.precision - 2, fmt.emax + 3, 700) + 1023
    bits[::2] = (bits[::2] & np.uint64(0x800FFFFFFFFFFFFF)) | inside.astype(np.uint64) << np.uint64(52)
    x = bits.view(np.float64)
    if fmt.bits <= 19:
        points = edges(fmt, np.float64)
        x[::3] = points[generator.integers(0, points.size, x[::3].size)]
    want = np.array([oracles.round_float(float(value), fmt, mode) for value in x])
    return Result(x.size, integer_oracle.differing(integer_oracle.results("round", [x], fmt, mode), want))


@sweep("Oracles", "the integer oracle's rounding, every named format and deterministic mode", "exact rationals")
def oracle_of_rounding():
    cases = [(fmt, mode) for fmt in FORMATS for mode in modes_of(fmt)]
    return total(rationals_round, ((*case, seed) for seed, case in enumerate(cases)))
