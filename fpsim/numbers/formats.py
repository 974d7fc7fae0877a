"""Binary floating-point formats as frozen data.

A format is a handful of numbers; everything else about it is derived from them. Adding a format is one line in
the table at the end of this file.
"""

from __future__ import annotations

import re
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from fpsim.numbers.computing import contains, why_no_arithmetic
from fpsim.numbers.encoding import CodedFloat
from fpsim.numbers.modes import Rounding
from fpsim.numbers.rounding import round_into


class Format(CodedFloat):
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

    @property
    def enclosing(self) -> Format:
        """The format itself."""
        return self

    @cached_property
    def beyond(self) -> Format:  # type: ignore[override]
        """The format with one more exponent at the top, where overflow has not happened yet."""
        return self.replace(name=f"beyond {self.name}", emax=self.emax + 1, specials="ieee", saturate=False)

    def properties(self) -> list[tuple[str, str]]:
        rows = [
            ("precision", f"{self.precision} bits, unit roundoff 2^-{self.precision}"),
            ("exponents", f"{self.emin} to {self.emax}"),
            ("smallest normal", f"2^{self.emin} = {self.min_normal:.9g}"),
        ]
        if self.has_zero and self.precision > 1:
            rows.append(("smallest subnormal", f"2^{self.emin - self.precision + 1} = {self.min_subnormal:.9g}"))
        return [*rows, *super().properties()]

    def lacks(self, operation: str, rounding: Rounding) -> str | None:
        if operation == "round":
            one_bit = rounding is Rounding.ODD and self.precision == 1
            return f"{self.name} cannot be rounded to odd: a significand of one bit is never even" if one_bit else None
        return why_no_arithmetic(self, rounding)

    def round_into(self, x: np.ndarray, out: np.ndarray, rounding: Rounding, key: int = 0, first_element: int = 0) -> None:
        round_into(x, out, self, rounding, key, first_element)


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


@lru_cache(maxsize=256)
def joined(*formats: Format) -> Format:
    """A format that holds every value of the given ones: one of them where it does."""
    for candidate in formats:
        if all(contains(candidate, fmt) for fmt in formats):
            return candidate
    precision = max(fmt.precision for fmt in formats)
    least = min(fmt.emin - fmt.precision for fmt in formats) + precision
    emin = min(least, *(fmt.emin for fmt in formats))
    name = " and ".join(sorted({fmt.name for fmt in formats}))
    return Format(name, precision, emin, max(fmt.emax for fmt in formats))
