"""fpsim runs an unmodified PyTorch model as a machine with other arithmetic would, bit for bit.

Every public name is imported when it is first used (PEP 562): `import fpsim` loads neither torch nor numba.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Where each public name lives. The imports for type checkers below say the same; a test compares them.
_HOMES = {
    "fpsim.formats": ("FORMATS", "Format", "get_format"),
    "fpsim.rounding": ("Rounding", "get_rounding", "round"),
    "fpsim.encoding": ("decode", "encode", "next_down", "next_up", "ulp"),
    "fpsim.arithmetic": ("add", "div", "fma", "mul", "sqrt", "sub"),
    "fpsim.accumulation": ("Accumulator", "Tree", "get_accumulator", "reveal"),
    "fpsim.products": ("dot", "matmul"),
    "fpsim.reductions": ("cumsum", "sum"),
    "fpsim.convolution": ("conv",),
    "fpsim.emulation": ("Simulation", "UnsupportedOp", "emulate", "run"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605 - names are checked by a test

if TYPE_CHECKING:
    from fpsim.accumulation import Accumulator, Tree, get_accumulator, reveal
    from fpsim.arithmetic import add, div, fma, mul, sqrt, sub
    from fpsim.convolution import conv
    from fpsim.emulation import Simulation, UnsupportedOp, emulate, run
    from fpsim.encoding import decode, encode, next_down, next_up, ulp
    from fpsim.formats import FORMATS, Format, get_format
    from fpsim.products import dot, matmul
    from fpsim.reductions import cumsum, sum
    from fpsim.rounding import Rounding, get_rounding, round


def __getattr__(name: str) -> object:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'fpsim' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value  # the next use finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
