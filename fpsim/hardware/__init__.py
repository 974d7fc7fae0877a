"""Hardware units: the table of models, and products exactly as a unit's registers hold them.

`fpsim.matmul(a, b, fmt="fp16", accumulate="h100")` rounds a unit's result to the operand format, as a model in that format
does; `product` here leaves it as it is.
"""

from fpsim._unit_products import UnconfirmedUnit
from fpsim.accumulation.units import UNITS, Instruction, Output, Unit, get_unit
from fpsim.hardware.products import product

__all__ = ["UNITS", "Instruction", "Output", "UnconfirmedUnit", "Unit", "get_unit", "product"]
