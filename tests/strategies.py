"""Tables and Hypothesis strategies: formats, modes, every value of a narrow format, and the numbers around them."""

import functools

import numpy as np
from hypothesis import strategies as st

import fpsim
from fpsim.numbers.rounding import Rounding

MODES = list(Rounding)
DETERMINISTIC = [mode for mode in MODES if mode is not Rounding.STOCHASTIC]
NAMED = list(fpsim.FORMATS.values())
#: Formats whose values are all listed in tests.
LISTED = [fmt for fmt in NAMED if fmt.bits <= 19]
NARROW = [fmt for fmt in NAMED if fmt.bits <= 8 and fmt.has_zero]
#: Formats that arithmetic serves in every mode.
COMPUTING = [fmt for fmt in NAMED if fmt.has_zero and fmt.precision <= 24]


def _variant(name, suffix, **changes):
    return fpsim.get_format(name).replace(name=name + suffix, **changes)


#: Switches and shapes that no named format has.
VARIANTS = [
    _variant("fp16", "-saturating", saturate=True),
    _variant("fp16", "-flushed-after", flush="after"),
    _variant("fp16", "-flushed-before", flush="before"),
    _variant("fp16", "-daz", flush="after", flush_inputs=True),
    _variant("float8_e4m3fn", "-saturating", saturate=True),
    _variant("float8_e4m3fn", "-flushed-before", flush="before", flush_inputs=True),
    _variant("float8_e4m3fnuz", "-saturating", saturate=True),
    _variant("float8_e5m2", "-flushed-after", flush="after"),
    _variant("float8_e5m2fnuz", "-flushed-after", flush="after"),
    fpsim.get_format("e3m0"),
    fpsim.get_format("e2m5"),
    fpsim.get_format("e9m12"),
    fpsim.Format("p23wide", precision=23, emin=-514, emax=510),  # the widest range there is
    fpsim.Format("p21fn", precision=21, emin=-30, emax=20, specials="fn"),
    fpsim.Format("p24fn", precision=24, emin=-30, emax=20, specials="fn"),
]
#: Every format that arithmetic is tested with.
ALL_COMPUTING = COMPUTING + VARIANTS


def fits_float32(fmt):
    return fmt.precision <= 24 and fmt.emax <= 127 and fmt.emin - fmt.precision + 1 >= -149


def defined(fmt, mode):
    """Whether the mode means anything for the format: with one digit nothing is even."""
    return mode is not Rounding.ODD or fmt.precision > 1


@functools.lru_cache(maxsize=64)
def every_value(fmt):
    """All values of a narrow format (float64), NaN once."""
    values = fpsim.decode(np.arange(2**fmt.bits, dtype=np.uint32), fmt).astype(np.float64)
    return np.concatenate([values[~np.isnan(values)], [np.nan]])


def around(points, dtype):
    """The points with their `dtype` neighbors on both sides, both signs, zeros, infinities and NaN."""
    points = np.asarray(points, np.float64)
    with np.errstate(over="ignore"):
        narrow = points[np.isfinite(points)].astype(dtype)
    limits = np.array([0.0, np.inf, np.nan, np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal], dtype)
    narrow = np.concatenate([narrow, limits])
    with np.errstate(over="ignore", under="ignore"):
        near = [narrow, np.nextafter(narrow, dtype(np.inf)), np.nextafter(narrow, dtype(-np.inf))]
    found = np.unique(np.abs(np.concatenate(near)))
    return np.concatenate([found, -found])


@functools.lru_cache(maxsize=64)
def edges(fmt, dtype):
    """Every value of the format, every midpoint (the one above max_finite too), and their `dtype` neighbors."""
    values = every_value(fmt)
    positive = np.unique(values[np.isfinite(values) & (values > 0)])
    beyond = positive[-1] * np.array([1.0625, 1.125, 1.25, 1.5, 1.75, 2.0])  # one of them is the overflow threshold
    unit = fmt.max_finite - positive[-2] if positive.size > 1 else fmt.max_finite
    ladder = np.concatenate([[0.0], positive, [fmt.max_finite + unit]])
    points = np.concatenate([positive, (ladder[1:] + ladder[:-1]) / 2, (ladder[1:] + 3 * ladder[:-1]) / 4, beyond])
    return around(points, dtype)


def random_values(fmt, count, generator, dtype=np.float64):
    """Values of the format: random codes, so that every exponent is equally likely, specials included."""
    if fmt.bits <= 19:
        values = every_value(fmt)
        return values[generator.integers(0, values.size, count)].astype(dtype)
    codes = generator.integers(0, 2**fmt.bits, count, dtype=np.uint64)
    return fpsim.decode(codes, fmt).astype(dtype)


def clustered_values(fmt, count, generator, dtype=np.float64):
    """Values of the format near its smallest and its largest numbers and around 1."""
    p = fmt.precision
    significands = generator.integers(0, 2**p, count).astype(np.float64)
    few = generator.integers(0, 3, count) == 0  # few bits set, so that ties are common
    significands[few] = 2.0 ** generator.integers(0, p, int(few.sum())) + generator.integers(-1, 2, int(few.sum()))
    centers = np.array([fmt.emin, fmt.emin, fmt.emax, 0, (fmt.emin - p) // 2, fmt.emax // 2])
    exponents = centers[generator.integers(0, centers.size, count)] + generator.integers(-2, 3, count)
    exponents = np.clip(exponents, fmt.emin, fmt.emax)
    values = np.abs(np.ldexp(significands, exponents - p + 1))
    values = np.minimum(values, fmt.max_finite)
    return (values * generator.choice([-1.0, 1.0], count)).astype(dtype)


def modes():
    return st.sampled_from(DETERMINISTIC)


def formats():
    return st.sampled_from([fmt for fmt in NAMED if fmt.has_zero] + VARIANTS)


def floats64():
    """float64 numbers of every kind, with more of those that narrow formats find hard."""
    return st.one_of(
        st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True),
        st.builds(
            lambda n, e, s: float(np.ldexp(np.float64(n) * s, e)),
            st.integers(0, 2**53 - 1),
            st.integers(-200, 100),
            st.sampled_from([-1.0, 1.0]),
        ),
    )


@st.composite
def nested_trees(draw, most=24, widest=4):
    """Nested tuples over a random permutation of 0 ... n-1, with groups of two or more."""
    forest = draw(st.permutations(range(draw(st.integers(1, most)))))
    forest = list(forest)
    while len(forest) > 1:
        width = draw(st.integers(2, min(widest, len(forest))))
        first = draw(st.integers(0, len(forest) - width))
        forest[first : first + width] = [tuple(forest[first : first + width])]
    return forest[0]
