"""Hardware units: the table of models, and products exactly as a unit's registers hold them.

`fpsim.matmul(a, b, fmt="fp16", accumulate="h100")` rounds a unit's result to the operand format, as a model in that format
does; `product` here leaves it as it is.
"""

from fpsim.accumulation.instructions import Instruction, Output, ScaledInstruction, Unit
from fpsim.accumulation.units import UNITS, get_unit
from fpsim.hardware.conversions import CONVERSIONS, Conversion, convert
from fpsim.hardware.products import product
from fpsim.hardware.scaled import quantize_blocks, scaled_product
from fpsim.sums.units.products import UnconfirmedUnit

__all__ = [
    "CONVERSIONS",
    "UNITS",
    "Conversion",
    "Instruction",
    "Output",
    "ScaledInstruction",
    "UnconfirmedUnit",
    "Unit",
    "convert",
    "get_unit",
    "product",
    "quantize_blocks",
    "scaled_product",
]
