"""Emulation of torch: an unmodified model on a machine with other arithmetic. Nothing else in fpsim imports torch."""

from fpsim.emulation.context import Emulation, emulate
from fpsim.emulation.errors import OutsideContext, UnsupportedOp, UnsupportedTensor
from fpsim.emulation.policy import Policy
from fpsim.emulation.report import Counts, Report
from fpsim.emulation.simulation import Simulation, run
from fpsim.emulation.table import TABLE, register, unregister

# Each of these fills the table with the rules of its family.
from fpsim.emulation import (  # isort: skip
    arithmetic,  # noqa: F401
    attention,  # noqa: F401
    convolution,  # noqa: F401
    distances,  # noqa: F401
    distributed,  # noqa: F401
    elementwise,  # noqa: F401
    exact,  # noqa: F401
    gradients,  # noqa: F401
    group_normalization,  # noqa: F401
    linear_algebra,  # noqa: F401
    losses,  # noqa: F401
    matmul,  # noqa: F401
    normalization,  # noqa: F401
    optimizers,  # noqa: F401
    pooling,  # noqa: F401
    random,  # noqa: F401
    reductions,  # noqa: F401
    rms_normalization,  # noqa: F401
    scatter,  # noqa: F401
    scatter_reduce,  # noqa: F401
    statistics,  # noqa: F401
    whole,  # noqa: F401
    steps,  # noqa: F401
    scaled_dot_product,  # noqa: F401
)

__all__ = [
    "TABLE",
    "Counts",
    "Emulation",
    "OutsideContext",
    "Policy",
    "Report",
    "Simulation",
    "UnsupportedOp",
    "UnsupportedTensor",
    "emulate",
    "register",
    "run",
    "unregister",
]
