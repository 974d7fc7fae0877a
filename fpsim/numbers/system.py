"""What any number system says of itself.

A number system is a finite set of numbers with a way to round to it and codes for its members. Binary floats (`Format`)
have kernels of their own. Others are served by the generic route: operands are widened to float64, which holds their values,
the operation is computed there, rounded to odd where it is inexact, and `round_into` rounds that once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

from fpsim.numbers.modes import Rounding
from fpsim.numbers.showing import html_table


class Field(NamedTuple):
    """A group of a code's bits: its name, its digits, and what they stand for."""

    name: str
    digits: str
    reading: str


class NumberSystem(ABC):
    """A finite set of numbers."""

    name: str

    @property
    @abstractmethod
    def bits(self) -> int:
        """Width of a code."""

    @property
    @abstractmethod
    def max_finite(self) -> float:
        """The largest finite value."""

    @property
    @abstractmethod
    def min_finite(self) -> float:
        """The least finite value."""

    @property
    @abstractmethod
    def has_infinity(self) -> bool:
        """Whether there are infinities."""

    @property
    @abstractmethod
    def has_nan(self) -> bool:
        """Whether there is a code for NaN."""

    @property
    @abstractmethod
    def has_zero(self) -> bool:
        """Whether zero is a value."""

    @property
    @abstractmethod
    def has_negative_zero(self) -> bool:
        """Whether -0 is told from +0."""

    @property
    @abstractmethod
    def enclosing(self) -> Any:
        """A binary float format, a `Format`, that holds every value: what plans for products of them are made with."""

    @property
    @abstractmethod
    def beyond(self) -> NumberSystem:
        """The system with room at the top, where overflow has not happened yet."""

    @property
    @abstractmethod
    def saturate(self) -> bool:
        """Whether what lies beyond the range becomes the nearest finite value."""

    def lacks(self, operation: str, rounding: Rounding) -> str | None:
        """Why it has no such operation in that mode, None where it has.

        Operations are "round", "add", "mul", "div", "sqrt", "fma", "functions" (elementary ones), "sum" (of products of its
        values), "accumulate" (whether additions may round to it) and "bound" (of errors).
        """
        return None

    def require(self, operation: str, rounding: Rounding = Rounding.NEAREST_EVEN) -> None:
        """Raise ValueError, saying what there is, where it lacks an operation."""
        reason = self.lacks(operation, rounding)
        if reason is not None:
            raise ValueError(reason)

    @abstractmethod
    def round_into(self, x: np.ndarray, out: np.ndarray, rounding: Rounding, key: int = 0, first_element: int = 0) -> None:
        """Round float32 or float64 numbers; nothing is checked, and the arrays may be one."""

    @abstractmethod
    def encode(self, values: np.ndarray) -> np.ndarray:
        """The codes, uint64, of float64 values of the system. Raises ValueError for a NaN where there is no code for it."""

    @abstractmethod
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The float64 values of uint64 codes, NaN for a code without a meaning."""

    @abstractmethod
    def ulp(self, x: np.ndarray) -> np.ndarray:
        """The distance between values at float64 numbers, which need be none."""

    @abstractmethod
    def next(self, x: np.ndarray, direction: int) -> np.ndarray:
        """The next value above (direction 1) or below (-1) each of float64 values."""

    @abstractmethod
    def fields(self, code: int) -> list[Field]:
        """The groups of a code's bits, from the most significant on."""

    def properties(self) -> list[tuple[str, str]]:
        """What there is to say of it at a glance, each with its name."""
        has = (("infinity", self.has_infinity), ("NaN", self.has_nan), ("0", self.has_zero), ("-0", self.has_negative_zero))
        return [
            ("bits", str(self.bits)),
            ("largest", f"{self.max_finite:.9g}"),
            ("least", f"{self.min_finite:.9g}"),
            ("has", ", ".join(name for name, present in has if present) or "numbers alone"),
            ("beyond the range", "the nearest finite number" if self.saturate else "infinity or NaN"),
        ]

    def _repr_html_(self) -> str:
        return html_table(self.name, self.properties())

    def __str__(self) -> str:
        return self.name
