"""Emulation of torch: an unmodified model on a machine with other arithmetic. Nothing else in fpsim imports torch."""

from fpsim.emulation import rules
from fpsim.emulation.dispatch.block import emulate
from fpsim.emulation.dispatch.context import Emulation
from fpsim.emulation.errors import NonFinite, OutsideContext, UnsupportedOp, UnsupportedTensor
from fpsim.emulation.machine.policy import Policy
from fpsim.emulation.observers import Call, Observer, observer_named
from fpsim.emulation.registry import TABLE, register, unregister
from fpsim.emulation.simulation import Simulation, run
from fpsim.report.counts import Counts
from fpsim.report.report import Report

rules.load()

__all__ = [
    "TABLE",
    "Call",
    "Counts",
    "Emulation",
    "NonFinite",
    "Observer",
    "OutsideContext",
    "Policy",
    "Report",
    "Simulation",
    "UnsupportedOp",
    "UnsupportedTensor",
    "emulate",
    "observer_named",
    "register",
    "run",
    "unregister",
]
