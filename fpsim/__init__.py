"""fpsim runs an unmodified PyTorch model as a machine with other arithmetic would, bit for bit.

Every public name is imported when it is first used (PEP 562): `import fpsim` loads neither torch nor numba.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Where each public name lives. The imports for type checkers below say the same; a test compares them.
_HOMES = {
    "fpsim.numbers.formats": "FORMATS Format get_format",
    "fpsim.numbers.fixed_point": "FixedPoint",
    "fpsim.numbers.names": "get_system",
    "fpsim.numbers.system": "NumberSystem",
    "fpsim.numbers.rounding": "Rounding get_rounding",
    "fpsim.arrays.rounding": "round",
    "fpsim.arrays.encoding": "decode encode next_down next_up ulp",
    "fpsim.arrays.arithmetic": "add div fma mul sqrt sub",
    "fpsim.arrays.elementary": (
        "acos acosh asin asinh atan atanh cos cosh erf erfc exp exp2 expm1 log log10 log1p log2 rsqrt sigmoid sin sinh tan tanh"
    ),
    "fpsim.accumulation": "Accumulator Order Tree get_accumulator reveal reveal_shapes",
    "fpsim.sums.observers.counters": "Counters",
    "fpsim.arrays.products": "dot matmul",
    "fpsim.arrays.reductions": "cumsum mean sum",
    "fpsim.arrays.convolution": "conv conv_input_gradient conv_weight_gradient",
    "fpsim.backend.threads": "get_num_threads set_num_threads",
    "fpsim.emulation": "Report Simulation UnsupportedOp emulate run",
    "fpsim.emulation.advising.entry": "advise",
    "fpsim.emulation.comparing": "compare",
    "fpsim.emulation.replay": "crosscheck",
    "fpsim.recorder": "record recording",
    "fpsim.emulation.certification": "Certificate Tolerance certify tolerance",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME_OF)

if TYPE_CHECKING:
    from fpsim.accumulation import (
        Accumulator as Accumulator,
        Order as Order,
        Tree as Tree,
        get_accumulator as get_accumulator,
        reveal as reveal,
        reveal_shapes as reveal_shapes,
    )
    from fpsim.arrays.arithmetic import add as add, div as div, fma as fma, mul as mul, sqrt as sqrt, sub as sub
    from fpsim.arrays.convolution import (
        conv as conv,
        conv_input_gradient as conv_input_gradient,
        conv_weight_gradient as conv_weight_gradient,
    )
    from fpsim.arrays.elementary import (
        acos as acos,
        acosh as acosh,
        asin as asin,
        asinh as asinh,
        atan as atan,
        atanh as atanh,
        cos as cos,
        cosh as cosh,
        erf as erf,
        erfc as erfc,
        exp as exp,
        exp2 as exp2,
        expm1 as expm1,
        log as log,
        log1p as log1p,
        log2 as log2,
        log10 as log10,
        rsqrt as rsqrt,
        sigmoid as sigmoid,
        sin as sin,
        sinh as sinh,
        tan as tan,
        tanh as tanh,
    )
    from fpsim.arrays.encoding import (
        decode as decode,
        encode as encode,
        next_down as next_down,
        next_up as next_up,
        ulp as ulp,
    )
    from fpsim.arrays.products import dot as dot, matmul as matmul
    from fpsim.arrays.reductions import cumsum as cumsum, mean as mean, sum as sum
    from fpsim.arrays.rounding import round as round
    from fpsim.backend.threads import get_num_threads as get_num_threads, set_num_threads as set_num_threads
    from fpsim.emulation import (
        Report as Report,
        Simulation as Simulation,
        UnsupportedOp as UnsupportedOp,
        emulate as emulate,
        run as run,
    )
    from fpsim.emulation.advising.entry import advise as advise
    from fpsim.emulation.certification import (
        Certificate as Certificate,
        Tolerance as Tolerance,
        certify as certify,
        tolerance as tolerance,
    )
    from fpsim.emulation.comparing import compare as compare
    from fpsim.emulation.replay import crosscheck as crosscheck
    from fpsim.numbers.fixed_point import FixedPoint as FixedPoint
    from fpsim.numbers.formats import FORMATS as FORMATS, Format as Format, get_format as get_format
    from fpsim.numbers.names import get_system as get_system
    from fpsim.numbers.rounding import Rounding as Rounding, get_rounding as get_rounding
    from fpsim.numbers.system import NumberSystem as NumberSystem
    from fpsim.recorder import record as record, recording as recording
    from fpsim.sums.observers.counters import Counters as Counters


def __getattr__(name: str) -> object:
    if name in ("accumulation", "bounds", "emulation", "hardware", "optim"):
        return import_module(f"fpsim.{name}")
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'fpsim' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value  # the next use finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
