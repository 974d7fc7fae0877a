"""What binary floating-point formats are: frozen numbers, and all that is derived from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

from fpsim.numbers.system import NumberSystem

Specials = Literal["ieee", "fn", "fnuz", "finite"]
Flush = Literal["after", "before"]

_SPECIALS = ("ieee", "fn", "fnuz", "finite")
_FLUSHES = (None, "after", "before")

#: The format that all others are rounded from: nothing wider can be computed with here.
_WIDEST_PRECISION, _WIDEST_EMIN, _WIDEST_EMAX = 53, -1022, 1023


@dataclass(frozen=True)
class BinaryFloat(NumberSystem):
    """The numbers that a binary floating-point format is; `formats.Format` says what they mean, and computes with them."""

    name: str
    precision: int
    emin: int
    emax: int
    specials: Specials = "ieee"
    saturate: bool = False
    flush: Flush | None = None
    flush_inputs: bool = False
    signed: bool = True

    def __hash__(self) -> int:
        return hash(self.name)  # strings know theirs, and formats are looked up by every operation

    def __post_init__(self) -> None:
        for field in ("precision", "emin", "emax"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"Format {self.name!r}: {field} must be an int, got {value!r}")
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"Format: name must be a nonempty string, got {self.name!r}")
        if self.specials not in _SPECIALS:
            raise ValueError(f"Format {self.name!r}: specials is one of {_SPECIALS}, got {self.specials!r}")
        if self.flush not in _FLUSHES:
            raise ValueError(f"Format {self.name!r}: flush is one of {_FLUSHES}, got {self.flush!r}")
        if not 1 <= self.precision <= _WIDEST_PRECISION:
            raise ValueError(f"Format {self.name!r}: precision must be 1 to 53, got {self.precision}")
        if not _WIDEST_EMIN <= self.emin <= self.emax <= _WIDEST_EMAX:
            raise ValueError(
                f"Format {self.name!r}: exponents must satisfy -1022 <= emin <= emax <= 1023, "
                f"got {self.emin}, {self.emax}"
            )
        if self.emin - self.precision + 1 < _WIDEST_EMIN - _WIDEST_PRECISION + 1:
            raise ValueError(f"Format {self.name!r}: its smallest subnormal is below float64's")
        if self.specials == "fn" and self.signed and self.precision == 1:
            raise ValueError(f"Format {self.name!r}: an fn format needs a stored significand bit for its NaN")
        if self.specials == "finite" and not self.saturate:
            raise ValueError(f"Format {self.name!r}: without infinity and NaN a format has to saturate")
        if not self.signed and (self.precision != 1 or self.specials != "fn"):
            raise ValueError(f"Format {self.name!r}: only a scale (precision 1, specials 'fn') can be unsigned")

    @cached_property
    def unit_roundoff(self) -> float:
        """u = 2^-p, the largest relative error of rounding a normal number to nearest."""
        return 2.0**-self.precision

    @cached_property
    def max_finite(self) -> float:  # type: ignore[override]
        """The largest finite value."""
        ones = 2**self.precision - 1
        if self.specials == "fn" and self.signed:
            ones -= 1  # the code of all ones is the NaN
        return float(ones) * 2.0 ** (self.emax - self.precision + 1)

    @cached_property
    def min_normal(self) -> float:
        """2^emin, the smallest positive normal value."""
        return 2.0**self.emin

    @property
    def min_subnormal(self) -> float:
        """The smallest positive value: 2^(emin-p+1), or `min_normal` where subnormals are flushed or absent."""
        return self.min_normal if self.flush or not self.has_zero else 2.0 ** (self.emin - self.precision + 1)

    @cached_property
    def has_infinity(self) -> bool:  # type: ignore[override]
        """Whether the format has codes for infinities."""
        return self.specials == "ieee"

    @property
    def has_nan(self) -> bool:
        """Whether the format has a code for NaN."""
        return self.specials != "finite"

    @cached_property
    def has_zero(self) -> bool:  # type: ignore[override]
        """Whether the format has a zero (all but float8_e8m0fnu)."""
        return self.signed

    @cached_property
    def has_negative_zero(self) -> bool:  # type: ignore[override]
        """Whether -0 is told from +0."""
        return self.signed and self.specials != "fnuz"

    @property
    def bias(self) -> int:
        """What the stored exponent exceeds the exponent by."""
        return (1 if self.has_zero else 0) - self.emin

    @cached_property
    def exponent_bits(self) -> int:
        """Width of the exponent field."""
        largest_field = self.emax + self.bias + (1 if self.specials == "ieee" else 0)
        return max(1, largest_field.bit_length())

    @property
    def bits(self) -> int:
        """Width of a code: sign, exponent and stored significand bits."""
        return int(self.signed) + self.exponent_bits + self.precision - 1

    @property
    def stochastic_top(self) -> float:
        """2^(emax+1), the virtual neighbour above `max_finite`; choosing it is overflow."""
        return 2.0 ** (self.emax + 1) if self.emax < _WIDEST_EMAX else float("inf")

    @property
    def min_finite(self) -> float:
        """The least finite value."""
        return -self.max_finite if self.signed else self.min_normal

    @cached_property
    def parameters(self) -> tuple[Any, ...]:
        """All that it is but its name."""
        return (
            *(self.precision, self.emin, self.emax, self.specials),
            *(self.saturate, self.flush, self.flush_inputs, self.signed),
        )

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, e.g. `get_format("fp16").replace(name="fp16ftz", flush="after")`."""
        return replace(self, **changes)
