"""Binary floating-point formats as frozen data.

A format is a handful of numbers; everything else about it is derived from them. Adding a format is one line in
the table at the end of this file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np

from fpsim.numbers.modes import Rounding
from fpsim.numbers.system import Field, NumberSystem

Specials = Literal["ieee", "fn", "fnuz", "finite"]
Flush = Literal["after", "before"]

_SPECIALS = ("ieee", "fn", "fnuz", "finite")
_FLUSHES = (None, "after", "before")

#: The format that all others are rounded from: nothing wider can be computed with here.
_WIDEST_PRECISION, _WIDEST_EMIN, _WIDEST_EMAX = 53, -1022, 1023


@dataclass(frozen=True)
class Format(NumberSystem):
    """A binary floating-point format (IEEE 754-2019, section 3.3, and its 8-bit and narrower relatives).

    Parameters
    ----------
    name : what it is called in messages, tables and `get_format`.
    precision : p, bits of the significand, the implicit leading bit included.
    emin, emax : exponents of the smallest normal number 2^emin and of the largest binade [2^emax, 2^(emax+1)).
    specials : which codes are not numbers. "ieee": the top exponent holds infinities and NaNs. "fn": no infinity,
        one NaN whose code is all ones. "fnuz": no infinity and no negative zero, whose code is the one NaN.
        "finite": neither infinity nor NaN.
    saturate : whether overflow and infinities give +-`max_finite` instead of infinity (or NaN).
    flush : None keeps subnormal results; "after" flushes them to a signed zero as judged after rounding (x86),
        "before" as judged before rounding (ARM).
    flush_inputs : whether subnormal operands count as zeros (denormals are zero).
    signed : False only for an unsigned scale without a zero (float8_e8m0fnu).

    Raises
    ------
    ValueError, TypeError : when the numbers do not describe a format whose values float64 holds.
    """

    name: str
    precision: int
    emin: int
    emax: int
    specials: Specials = "ieee"
    saturate: bool = False
    flush: Flush | None = None
    flush_inputs: bool = False
    signed: bool = True

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

    @property
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

    @property
    def min_normal(self) -> float:
        """2^emin, the smallest positive normal value."""
        return 2.0**self.emin

    @property
    def min_subnormal(self) -> float:
        """The smallest positive value: 2^(emin-p+1), or `min_normal` where subnormals are flushed or absent."""
        return self.min_normal if self.flush or not self.has_zero else 2.0 ** (self.emin - self.precision + 1)

    @property
    def has_infinity(self) -> bool:
        """Whether the format has codes for infinities."""
        return self.specials == "ieee"

    @property
    def has_nan(self) -> bool:
        """Whether the format has a code for NaN."""
        return self.specials != "finite"

    @property
    def has_zero(self) -> bool:
        """Whether the format has a zero (all but float8_e8m0fnu)."""
        return self.signed

    @property
    def has_negative_zero(self) -> bool:
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

    @property
    def enclosing(self) -> Format:
        """The format itself."""
        return self

    @cached_property
    def beyond(self) -> Format:  # type: ignore[override]
        """The format with one more exponent at the top, where overflow has not happened yet."""
        return self.replace(name=f"beyond {self.name}", emax=self.emax + 1, specials="ieee", saturate=False)

    def lacks(self, operation: str, rounding: Rounding) -> str | None:
        from fpsim.numbers.computing import why_no_arithmetic

        if operation == "round":
            one_bit = rounding is Rounding.ODD and self.precision == 1
            return f"{self.name} cannot be rounded to odd: a significand of one bit is never even" if one_bit else None
        return why_no_arithmetic(self, rounding)

    def round_into(self, x: np.ndarray, out: np.ndarray, rounding: Rounding, key: int = 0, first_element: int = 0) -> None:
        from fpsim.numbers.rounding import round_into

        round_into(x, out, self, rounding, key, first_element)

    def encode(self, values: np.ndarray) -> np.ndarray:
        from fpsim.numbers.encoding import encode_values

        return encode_values(values, self)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        from fpsim.numbers.encoding import decode_codes

        return decode_codes(codes, self)

    def ulp(self, x: np.ndarray) -> np.ndarray:
        from fpsim.numbers.encoding import ulp_of

        return ulp_of(x, self)

    def next(self, x: np.ndarray, direction: int) -> np.ndarray:
        from fpsim.numbers.encoding import next_of

        return next_of(x, self, direction)

    def fields(self, code: int) -> list[Field]:
        from fpsim.numbers.encoding import fields_of

        return fields_of(code, self)

    def replace(self, **changes: Any) -> Format:
        """A copy with some fields changed, e.g. `get_format("fp16").replace(name="fp16ftz", flush="after")`."""
        return replace(self, **changes)

    def __str__(self) -> str:
        return self.name


def _ieee(name: str, exponent_bits: int, stored: int, **changes: Any) -> Format:
    emax = 2 ** (exponent_bits - 1) - 1
    return Format(name, precision=stored + 1, emin=1 - emax, emax=emax, **changes)


FP16 = _ieee("fp16", 5, 10)
BF16 = _ieee("bf16", 8, 7)
FP32 = _ieee("fp32", 8, 23)
FP64 = _ieee("fp64", 11, 52)

#: Every named format, by name. The 8-, 6- and 4-bit ones have ml_dtypes' names and meaning.
FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        FP16,
        BF16,
        FP32,
        FP64,
        _ieee("tf32", 8, 10),
        _ieee("float8_e5m2", 5, 2),
        Format("float8_e4m3fn", precision=4, emin=-6, emax=8, specials="fn"),
        _ieee("float8_e4m3", 4, 3),
        _ieee("float8_e3m4", 3, 4),
        Format("float8_e4m3b11fnuz", precision=4, emin=-10, emax=4, specials="fnuz"),
        Format("float8_e4m3fnuz", precision=4, emin=-7, emax=7, specials="fnuz"),
        Format("float8_e5m2fnuz", precision=3, emin=-15, emax=15, specials="fnuz"),
        Format("float8_e8m0fnu", precision=1, emin=-127, emax=127, specials="fn", signed=False),
        Format("float6_e3m2fn", precision=3, emin=-2, emax=4, specials="finite", saturate=True),
        Format("float6_e2m3fn", precision=4, emin=0, emax=2, specials="finite", saturate=True),
        Format("float4_e2m1fn", precision=2, emin=0, emax=2, specials="finite", saturate=True),
    )
}

_ALIASES: dict[str, str] = {
    "float16": "fp16",
    "half": "fp16",
    "e5m10": "fp16",
    "bfloat16": "bf16",
    "e8m7": "bf16",
    "float32": "fp32",
    "float": "fp32",
    "e8m23": "fp32",
    "float64": "fp64",
    "double": "fp64",
    "e11m52": "fp64",
    "tensorfloat32": "tf32",
    "e8m10": "tf32",
}
for _name in FORMATS:
    _width, _, _short = _name.partition("_")
    if _short:
        _ALIASES[_short] = _name
        _ALIASES[f"{_width.replace('float', 'fp')}_{_short}"] = _name

_PARAMETRIC = re.compile(r"e(\d+)m(\d+)")


@lru_cache(maxsize=1024)
def _from_name(text: str) -> Format:
    name = text.strip().lower()
    name = _ALIASES.get(name, name)
    if name in FORMATS:
        return FORMATS[name]
    parametric = _PARAMETRIC.fullmatch(name)
    if not parametric:
        raise ValueError(
            f"unknown format {text!r}: known are {', '.join(FORMATS)}, the same without float8_, float6_ or float4_, "
            "any IEEE-like eXmY (X exponent bits, Y stored significand bits), or a Format(...)"
        )
    exponent_bits, stored = int(parametric[1]), int(parametric[2])
    if not 2 <= exponent_bits <= 11 or not 0 <= stored <= 52:
        raise ValueError(
            f"unknown format {text!r}: eXmY takes 2 to 11 exponent bits and 0 to 52 stored significand bits"
        )
    return _ieee(name, exponent_bits, stored)


def get_format(fmt: Any) -> Format:
    """The `Format` that a name, a Format, a torch dtype, or a NumPy or ml_dtypes dtype stands for.

    Names are those of `FORMATS`, their aliases (`half`, `bfloat16`, `e4m3fn`, `fp8_e4m3fn`, ...), and `eXmY` for an
    IEEE-like format with X exponent bits and Y stored significand bits.

    Raises
    ------
    ValueError : for an unknown name or a dtype that is not a binary floating-point format; it lists what there is.
    TypeError : for any other object.
    """
    if isinstance(fmt, Format):
        return fmt
    if isinstance(fmt, str):
        return _from_name(fmt)
    name = dtype_name(fmt)
    if name is None:
        raise TypeError(f"a format is a name, a Format or a dtype, got {fmt!r}")
    try:
        return _from_name(name)
    except ValueError:
        raise ValueError(
            f"dtype {name} is not a binary floating-point format: known are {', '.join(FORMATS)}"
        ) from None


def dtype_name(dtype: Any) -> str | None:
    """The name of a torch, NumPy or ml_dtypes dtype; None for anything else."""
    if type(dtype).__module__ == "torch" and type(dtype).__name__ == "dtype":
        return str(dtype).removeprefix("torch.")
    if isinstance(dtype, np.dtype):
        return dtype.name
    if isinstance(dtype, type):
        try:
            return np.dtype(dtype).name
        except TypeError:
            return None
    return None
