"""What is told of every operation under emulation: observers, and the registry that knows those of fpsim by name."""

from fpsim.emulation.observers import coverage, events, histograms, ranges, shadow, swamping
from fpsim.emulation.observers.call import Call
from fpsim.emulation.observers.observer import OBSERVERS, Observer, observer_named

__all__ = [
    "OBSERVERS",
    "Call",
    "Observer",
    "coverage",
    "events",
    "histograms",
    "observer_named",
    "ranges",
    "shadow",
    "swamping",
]
