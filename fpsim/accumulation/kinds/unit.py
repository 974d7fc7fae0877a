"""Hardware units."""

from __future__ import annotations

from dataclasses import replace

from fpsim.accumulation.kinds.kind import Asked, Kind, Whole
from fpsim.accumulation.kinds.tree import TREE
from fpsim.accumulation.orders import sequential
from fpsim.numbers.formats import FP32


class HardwareUnit(Kind):
    """A unit whose instructions fix order, alignment and rounding; split(k) makes that many parts, added one by one."""

    name = "unit"
    own_addends = 1
    computes = False

    def check(self, accumulator: Asked) -> None:
        unit, plain = accumulator.unit, accumulator.products == "rounded" and accumulator.promoted is None
        if not plain or not (accumulator.order == sequential or accumulator.order.name == "split"):
            raise ValueError("accumulate: unit takes no order but split(k), no fma or exact-products and no second format")
        if unit is None:
            raise ValueError("accumulate: the kind 'unit' and a unit go together")
        if accumulator.format.name not in unit.output_names:
            outputs = ", ".join(unit.output_names)
            raise ValueError(f"accumulate: unit {unit.name} has no {accumulator.format.name} output; it has {outputs}")

    def for_sums(self, accumulator: Whole) -> Whole:
        """Units only multiply, and beside them sums are chains in fp32."""
        return replace(accumulator, kind=TREE, format=FP32, order=sequential, unit=None)

    def text(self, accumulator: Asked) -> str:
        assert accumulator.unit is not None
        usual = accumulator.format.name == accumulator.unit.output_names[0]
        parts = [accumulator.unit.name, *([] if usual else [accumulator.format.name])]
        return ":".join(parts + ([] if accumulator.order == sequential else [str(accumulator.order)]))


UNIT = HardwareUnit()
