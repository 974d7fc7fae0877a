"""Number systems by their names."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from fpsim.numbers.fixed_point import FIXED, parse_fixed
from fpsim.numbers.formats import Format, dtype_name, get_format
from fpsim.numbers.splits import find_split
from fpsim.numbers.system import NumberSystem


def get_system(fmt: Any) -> NumberSystem:
    """The number system that a name, a system, a torch dtype, or a NumPy or ml_dtypes dtype stands for.

    Names are those that `get_format` knows, `int4`, `int8`, `int16`, `int32`, `uint4`, `uint8`, `uint16`, and
    `fixed(bits, fraction)` and `ufixed(bits, fraction)` for multiples of 2^-fraction.

    Raises
    ------
    ValueError : for an unknown name or a dtype without such a system; it lists what there is.
    TypeError : for any other object.
    """
    if isinstance(fmt, str):
        return _named(fmt)
    if isinstance(fmt, NumberSystem):
        return fmt
    name = dtype_name(fmt)
    return get_format(fmt) if name is None else _named(name)  # the first says what it takes


@lru_cache(maxsize=1024)
def _named(text: str) -> NumberSystem:
    split = find_split(text)
    if split is not None:
        raise ValueError(
            f"{split} is a way to multiply fp32 numbers in parts and no format of numbers; products take it: fmt of matmul, "
            f"dot and conv, and the role 'product' of run and emulate, {{'*': 'fp32', 'product': '{split}'}}"
        )
    fixed = parse_fixed(text.strip().lower())
    if fixed is not None:
        return fixed
    try:
        return get_format(text)
    except ValueError as error:
        raise ValueError(f"{error}; {', '.join(FIXED)}, fixed(bits, fraction) or ufixed(bits, fraction)") from None


def get_float_format(fmt: Any, operation: str) -> Format:
    """The binary float format of that name; ValueError for another system, saying why it has no such operation."""
    system = get_system(fmt)
    if not isinstance(system, Format):
        system.require(operation)
        raise ValueError(f"{system.name} is no floating-point format")
    return system
