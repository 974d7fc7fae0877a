"""Emulation of torch: an unmodified model on a machine with other arithmetic. Nothing else in fpsim imports torch."""

from fpsim.emulation.dispatch.context import Emulation, emulate
from fpsim.emulation.errors import OutsideContext, UnsupportedOp, UnsupportedTensor
from fpsim.emulation.machine.policy import Policy
from fpsim.emulation.registry import TABLE, register, unregister
from fpsim.emulation.report import Counts, Report

# Each of these fills the table with the rules of its family.
from fpsim.emulation.rules import (
    arithmetic,
    attention,
    convolution,
    distances,
    distributed,
    elementwise,
    exact,
    gradients,
    group_normalization,
    linear_algebra,
    losses,
    matmul,
    normalization,
    optimizers,
    pooling,
    random,
    reductions,
    rms_normalization,
    scaled_dot_product,
    scatter,
    scatter_reduce,
    statistics,
    steps,
    whole,
)  # isort: skip
from fpsim.emulation.simulation import Simulation, run

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
