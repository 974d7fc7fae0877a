"""Functions of one value: in a narrow format they have few arguments, so what was computed once is looked up.

A table holds the function's rounded results and what each rounding did, computed by the plain path; so bits and counts are
those of the plain path.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

from fpsim.backend import numba as kernels
from fpsim.emulation.machine.finishing import BLOCK, Finish

_WIDEST = 11  # bits of precision: tables of 2^19 places, of which a format's exponents use few
_MOST_TABLES = 16
_MOST_FUNCTIONS = 256
_WORTH = 4  # times a table's arguments have to be asked for before it is made
_COST = 8  # of looking an element up, in multiply-adds

Function = Callable[[np.ndarray], np.ndarray]  # of float64 values, element by element


class Tables:
    """The tables of one format and mode, made as they become worth it."""

    def __init__(self, finish: Finish):
        fmt = finish.fmt.enclosing
        self._finish = finish
        self.serves = finish.has_kernels and not finish.stochastic and fmt.precision <= _WIDEST and fmt.emin >= -126
        self._tables: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._asked: OrderedDict[Hashable, int] = OrderedDict()
        self._dropped = np.int32(24 - fmt.precision)

    def apply(self, name: Hashable, function: Function, x: np.ndarray, out: np.ndarray, row: np.ndarray) -> bool:
        """out = function(x) rounded and counted, for flat float32 values of the format, if there is a table for it.

        `name` tells functions apart. False where the plain path has to do.
        """
        if not self.serves or x.size < BLOCK:
            return False
        table = self._tables.get(name) if name in self._tables else self._worth(name, function, x.size)
        if table is None:
            return False
        results: list[bool] = []

        def part(first: int, last: int, counts: np.ndarray) -> None:
            results.append(kernels.tables.look_up(x[first:last], out[first:last], table, self._dropped, counts))

        counted = np.zeros_like(row)
        self._finish.split(x.size, _COST, BLOCK, counted, part)
        if not all(results):  # a NaN from outside may carry bits that no value of the format has
            return False
        row += counted
        return True

    def _worth(self, name: Hashable, function: Function, size: int) -> np.ndarray | None:
        asked = self._asked.pop(name, 0) + size
        if asked < _WORTH * self._places().size:
            self._asked[name] = asked
            if len(self._asked) > _MOST_FUNCTIONS:
                self._asked.popitem(last=False)
            return None
        self._tables[name] = table = self._make(function)
        if len(self._tables) > _MOST_TABLES:
            self._tables.popitem(last=False)
        return table

    def _places(self) -> np.ndarray:
        """Where the format's values, and some that are none, lie in a table: leading bits of float32 numbers."""
        fmt = self._finish.fmt.enclosing
        least, largest, infinity = (
            int(np.float32(value).view(np.int32)) >> int(self._dropped)
            for value in (fmt.min_subnormal, fmt.max_finite, np.inf)
        )
        half = 1 << (31 - int(self._dropped))
        positive = np.concatenate([[0], np.arange(least, largest + 1), np.arange(infinity, half)])
        return np.concatenate([positive, positive + half])

    def _make(self, function: Function) -> np.ndarray:
        places = self._places()
        bits = (places << int(self._dropped)).astype(np.uint32)
        with np.errstate(all="ignore"):
            values = function(bits.view(np.float32).astype(np.float64))
        events = self._events(values)
        rounded = np.empty(values.size, np.float32)
        self._finish.round(values, rounded, np.zeros(kernels.counting.LENGTH, np.int64))
        table = np.empty(1 << (32 - int(self._dropped)), np.int32)  # what is no place is never touched
        table[places] = (rounded.view(np.int32) & ~kernels.tables.EVENT_BITS) | events
        return table

    def _events(self, values: np.ndarray) -> np.ndarray:
        over_positive, over_negative, under_positive, under_negative = self._finish.limits(values.dtype)
        over = np.isfinite(values) & ((values >= over_positive) | (values <= over_negative))
        under = (values != 0) & (values <= under_positive) & (values >= under_negative)
        choices = [np.isnan(values), np.isinf(values), over, under]
        names = kernels.tables
        return np.select(choices, [names.IS_NAN, names.IS_INFINITE, names.OVERFLOWED, names.UNDERFLOWED], 0)
