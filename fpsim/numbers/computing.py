"""What may compute where: when a carrier's own operation and one more rounding give the exact result rounded once.

Everything that chooses between float32 and float64 asks here. Theorems: Figueroa (When is double rounding innocuous?, 1995)
for results to nearest even, Boldo and Melquiond (Emulation of FMA and correctly rounded sums, 2008) for rounding to odd.
"""

from __future__ import annotations

from functools import lru_cache

from fpsim.numbers.binary import BinaryFloat
from fpsim.numbers.modes import Rounding
from fpsim.numbers.system import NumberSystem

_FLOAT32 = (24, -126, 127, "ieee", False, None, False, True)  # `BinaryFloat.parameters`
_FLOAT64 = (53, -1022, 1023, "ieee", False, None, False, True)
_LEAST_EXPONENT = -149  # of float32's smallest subnormal number


def is_full(fmt: BinaryFloat) -> bool:
    """Whether the format's largest number has all bits of its significand set."""
    return bool(fmt.max_finite == 2.0**fmt.emax * (2 - 2.0 ** (1 - fmt.precision)))


def quantum_exponent(fmt: BinaryFloat) -> int:
    """e such that every value of the format is a multiple of 2^e."""
    return fmt.emin - fmt.precision + 1


def contains(wide: BinaryFloat, narrow: BinaryFloat) -> bool:
    """Whether rounding to `wide` leaves every value of `narrow` as it is."""
    return (
        wide.precision >= narrow.precision
        and wide.max_finite >= narrow.max_finite
        and quantum_exponent(wide) <= quantum_exponent(narrow)
        and ((wide.has_infinity and not wide.saturate) or not narrow.has_infinity)
        and (wide.has_negative_zero or not narrow.has_negative_zero)
        and wide.flush is None
    )


@lru_cache(maxsize=1024)
def require_arithmetic(system: NumberSystem, rounding: Rounding, operation: str = "add", name: str | None = None) -> None:
    """Raise ValueError, naming the argument if given, unless the operation is correctly rounded in this system and mode."""
    reason = system.lacks(operation, rounding)
    if reason is None and name == "accumulate" and isinstance(system, BinaryFloat) and system.flush_inputs and not system.flush:
        raise ValueError(f"accumulate = {system.name} flushes inputs but keeps subnormal results, which no kernel here does")
    if reason is not None:
        raise ValueError(reason if name is None else f"{name}: {reason}")


def why_no_arithmetic(fmt: BinaryFloat, rounding: Rounding) -> str | None:
    """Why operations are not correctly rounded in this format and mode; None where they are.

    They are where float64 holds every product and the range of every quotient: p <= 24, 2(emin - p + 1) >= -1074 and
    2(emax + 1) <= 1023. fp64 is the machine's own.
    """
    if not fmt.has_zero:
        return f"{fmt.name} has no zero: it has rounding and encoding only, no arithmetic"
    if is_float64(fmt):
        return None if rounding is Rounding.NEAREST_EVEN else f"{fmt.name} computes in nearest-even only, not {rounding}"
    if fmt.precision > 24 or 2 * quantum_exponent(fmt) < -1074 or 2 * (fmt.emax + 1) > 1023:
        return (
            f"{fmt.name} has rounding and encoding only, no arithmetic: it would need precision <= 24, "
            "2(emin - precision + 1) >= -1074 and 2(emax + 1) <= 1023"
        )
    if rounding is Rounding.ODD and fmt.precision == 1:
        return f"{fmt.name} cannot be rounded to odd: a significand of one bit is never even"
    return None


def float32_adds(fmt: BinaryFloat) -> bool:
    """Whether a float32 sum of two values, rounded once more to nearest even, is their sum rounded once: 24 >= 2p + 2.

    Sums are multiples of the format's quantum, so that none is rounded at the bottom of float32's range.
    """
    return 2 * fmt.precision + 2 <= 24 and quantum_exponent(fmt) >= _LEAST_EXPONENT and fmt.emax <= 127 and fmt.flush is None


def float32_multiplies(fmt: BinaryFloat, operand_precision: int) -> bool:
    """Whether the same is true of products of two operands of so many bits: none that counts is subnormal in float32."""
    return fmt.emin >= fmt.precision + 2 * operand_precision - 150


@lru_cache(maxsize=1024)
def float32_serves(fmt: BinaryFloat, rounding: Rounding) -> bool:
    """Whether the same is true of add, sub, mul, div and sqrt of values of the format (not of fma), in this mode."""
    nearest = rounding is Rounding.NEAREST_EVEN and not fmt.flush_inputs
    return nearest and float32_adds(fmt) and float32_multiplies(fmt, fmt.precision)


def float64_adds(fmt: BinaryFloat) -> bool:
    """Whether a float64 sum of two values, rounded once more to nearest even, is their sum rounded once."""
    return is_float64(fmt) or (fmt.precision <= 24 and 2 * (fmt.emax + 1) <= 1023)


def products_are_exact(operand: BinaryFloat, precision: int, least: int, above: int) -> bool:
    """Whether every product of two operands is a value of a carrier of that precision and range of exponents."""
    return 2 * operand.precision <= precision and 2 * quantum_exponent(operand) >= least and 2 * (operand.emax + 1) <= above


def is_float32(fmt: BinaryFloat) -> bool:
    """Whether the format is float32 under any name."""
    return fmt.parameters == _FLOAT32


def is_float64(fmt: BinaryFloat) -> bool:
    """Whether the format is float64 under any name."""
    return fmt.parameters == _FLOAT64
