"""The rounding modes."""

from __future__ import annotations

import enum


class Rounding(enum.Enum):
    """The rounding modes (IEEE 754-2019, section 4.3, and two more).

    ODD truncates and sets the last bit of an inexact result, so that a later rounding to fewer bits is right.
    STOCHASTIC takes the upper neighbor with the probability of the distance from the lower one.
    """

    NEAREST_EVEN = "nearest-even"
    NEAREST_AWAY = "nearest-away"
    TOWARD_ZERO = "toward-zero"
    UP = "up"
    DOWN = "down"
    ODD = "odd"
    STOCHASTIC = "stochastic"

    def __init__(self, name: str):
        self.code = len(type(self).__members__)  # the number that stands for the mode inside kernels

    __hash__ = object.__hash__  # members are single; Enum's own is a function of Python

    def __str__(self) -> str:
        return self.value


_BY_NAME = {mode.value: mode for mode in Rounding}


def get_rounding(rounding: str | Rounding) -> Rounding:
    """The `Rounding` of that name.

    Raises
    ------
    ValueError : for an unknown name; it lists what there is.
    """
    if isinstance(rounding, Rounding):
        return rounding
    mode = _BY_NAME.get(rounding) if isinstance(rounding, str) else None
    if mode is None:
        raise ValueError(f"unknown rounding {rounding!r}: known are {', '.join(_BY_NAME)}")
    return mode
