"""Fixed-point numbers and integers: multiples of one power of two, in two's complement or unsigned."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fpsim.backend import numba as kernels
from fpsim.numbers.formats import Format
from fpsim.numbers.modes import Rounding
from fpsim.numbers.system import Field, NumberSystem

_MOST_BITS = 32  # so that sums of two values, and a value beside 20 bits of a fraction, are float64's
_MOST_OF_FACTORS = 24  # so that products are exact and their sums are planned as those of floats
_TINY = 2.0**-900
_MOST_OF_DRAWS = 20  # so that 2^-32 of a step is an even number of steps of float64


@dataclass(frozen=True)
class FixedPoint(NumberSystem):
    """k * 2^-fraction for integers k of so many bits: -2^(bits-1) ... 2^(bits-1) - 1, or 0 ... 2^bits - 1 unsigned.

    What lies outside, infinities included, saturates in every mode. There is one zero, +0, and no NaN: a NaN stays one in
    its carrier, and `encode` of it raises.

    Raises ValueError unless 2 <= bits <= 32 and -32 <= fraction <= 64.
    """

    name: str
    width: int
    fraction: int = 0
    signed: bool = True

    saturate = has_zero = True
    has_infinity = has_nan = has_negative_zero = False

    def __post_init__(self) -> None:
        if not 2 <= self.width <= _MOST_BITS or not -32 <= self.fraction <= 64:
            raise ValueError(f"{self.name}: fixed-point numbers have 2 to 32 bits, -32 to 64 of them after the point")

    @property
    def bits(self) -> int:
        return self.width

    @property
    def quantum(self) -> float:
        """The distance between neighbors."""
        return 2.0**-self.fraction

    @property
    def largest(self) -> int:
        """The largest k."""
        return 2 ** (self.width - int(self.signed)) - 1

    @property
    def least(self) -> int:
        """The least k."""
        return -(2 ** (self.width - 1)) if self.signed else 0

    @property
    def max_finite(self) -> float:
        return self.largest * self.quantum

    @property
    def min_finite(self) -> float:
        return self.least * self.quantum

    @cached_property
    def enclosing(self) -> Format:
        top = self.width - 1 - self.fraction  # of the least value, or of the largest unsigned one
        precision = self.width - int(self.signed)
        return Format(f"values of {self.name}", precision, precision - 1 - self.fraction, top)

    @cached_property
    def beyond(self) -> FixedPoint:
        return FixedPoint(f"beyond {self.name}", _MOST_BITS, self.fraction, self.signed) if self.width < _MOST_BITS else self

    def lacks(self, operation: str, rounding: Rounding) -> str | None:
        reasons = {
            "accumulate": f"{self.name} holds no sums of rounded additions: accumulate in a floating-point format, or exactly",
            "div": f"{self.name} has no rule for division by zero; it has add, sub, mul, fma and sums of products",
            "sqrt": f"{self.name} has no rule for roots of negative numbers; it has add, sub, mul, fma and sums of products",
            "functions": f"{self.name} has no elementary functions; it has add, sub, mul, fma and sums of products",
            "bound": f"{self.name} has no error bounds: they are for floating-point formats",
        }
        if operation in reasons:
            return reasons[operation]
        if operation in ("mul", "fma", "sum") and self.width > _MOST_OF_FACTORS:
            return f"{self.name} has no products here: they take at most {_MOST_OF_FACTORS} bits"
        if rounding is Rounding.STOCHASTIC and operation != "round" and self.width > _MOST_OF_DRAWS:
            return f"{self.name} has no stochastic arithmetic here: it takes at most {_MOST_OF_DRAWS} bits"
        return None

    def round_into(self, x: np.ndarray, out: np.ndarray, rounding: Rounding, key: int = 0, first_element: int = 0) -> None:
        with np.errstate(invalid="ignore", over="ignore"):  # a signaling NaN is no error here; what overflows saturates
            wide = x.astype(np.float64)
            tiny = (wide != 0) & (np.abs(wide) < _TINY)  # far below every quantum, but not to vanish in scaling
            scaled = np.where(tiny, np.copysign(_TINY, wide), wide) * 2.0**self.fraction
            magnitude = np.abs(scaled)
            low = np.floor(magnitude)
            rest = magnitude - low  # exact
            outward = _goes_outward(scaled, low, rest, rounding, key, first_element)
            counts = np.clip(np.copysign(low + outward, scaled), self.least, self.largest)
            out[...] = counts * self.quantum + 0.0

    def encode(self, values: np.ndarray) -> np.ndarray:
        if np.isnan(values).any():
            raise ValueError(f"x holds a NaN, for which {self.name} has no code")
        counts = (values * 2.0**self.fraction).astype(np.int64)
        return counts.view(np.uint64) & np.uint64(2**self.width - 1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        counts = codes.astype(np.int64)
        return np.where(counts > self.largest, counts - 2**self.width, counts) * self.quantum

    def ulp(self, x: np.ndarray) -> np.ndarray:
        return np.where(np.isfinite(x), self.quantum, np.abs(x))

    def next(self, x: np.ndarray, direction: int) -> np.ndarray:
        return np.clip(x + direction * self.quantum, self.min_finite, self.max_finite) + 0.0

    def fields(self, code: int) -> list[Field]:
        digits = f"{code:0{self.width}b}"
        whole = min(max(self.width - self.fraction, int(self.signed)), self.width)
        sign = [Field("sign", digits[:1], "-" if digits[0] == "1" else "+")] if self.signed else []
        rest = [Field("integer", digits[int(self.signed) : whole], ""), Field("fraction", digits[whole:], "")]
        return sign + [field for field in rest if field.digits]


def _goes_outward(
    scaled: np.ndarray, low: np.ndarray, rest: np.ndarray, rounding: Rounding, key: int, first_element: int
) -> np.ndarray:
    """Whether each number becomes its neighbor of larger magnitude."""
    match rounding:
        case Rounding.NEAREST_EVEN:
            return (rest > 0.5) | ((rest == 0.5) & (low % 2 == 1))
        case Rounding.NEAREST_AWAY:
            return rest >= 0.5
        case Rounding.TOWARD_ZERO:
            return np.zeros(rest.shape, bool)
        case Rounding.UP:
            return (rest > 0) & (scaled > 0)
        case Rounding.DOWN:
            return (rest > 0) & (scaled < 0)
        case Rounding.ODD:
            return (rest > 0) & (low % 2 == 0)
        case Rounding.STOCHASTIC:
            draws = np.empty(rest.size, np.uint32)
            kernels.draws.fill_draws(np.uint64(key), np.int64(first_element), draws)
            return draws.reshape(rest.shape) < np.floor(rest * 2.0**32)  # up with probability floor(rest 2^32) / 2^32


#: Every named fixed-point system, by name.
FIXED: dict[str, FixedPoint] = {
    entry.name: entry
    for entry in (
        FixedPoint("int4", 4),
        FixedPoint("int8", 8),
        FixedPoint("int16", 16),
        FixedPoint("int32", 32),
        FixedPoint("uint4", 4, signed=False),
        FixedPoint("uint8", 8, signed=False),
        FixedPoint("uint16", 16, signed=False),
    )
}
_PARAMETRIC = re.compile(r"(u?)fixed\(\s*(\d+)\s*,\s*(-?\d+)\s*\)")


def parse_fixed(text: str) -> FixedPoint | None:
    """The system of that name, or of "fixed(bits, bits after the point)" or "ufixed(...)"; None for other texts.

    Raises ValueError for bits that no such system has.
    """
    named = FIXED.get(text)
    parametric = _PARAMETRIC.fullmatch(text)
    if named is not None or parametric is None:
        return named
    unsigned, width, fraction = parametric.groups()
    return FixedPoint(f"{unsigned}fixed({int(width)},{int(fraction)})", int(width), int(fraction), not unsigned)
