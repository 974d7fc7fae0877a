"""What every callback does: look at a simulation while it trains, and write its report now and then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fpsim.emulation.observers.observer import get_observers
from fpsim.emulation.simulation import Simulation
from fpsim.report.report import Report
from fpsim.report.scalars import is_writer, writer_to


class Reporting:
    """Observes a simulation from the start of a training to its end, which both lie within `with sim:`.

    sim          what is trained: `fpsim.run(model, ..., inplace=True)`
    observe      what is observed, as `run` takes it
    on_nonfinite "raise" or "warn", as `run` takes it
    path         where the report goes (.html or .json): every so many steps, so that one of a training that failed is there,
                 and at the end
    writer       what `Report.to_tensorboard` takes; in a folder a training has one file
    every        steps from one writing to the next; 0 writes at the end alone
    """

    def __init__(
        self, sim: Simulation, observe: Any = ("range", "events"), on_nonfinite: str | None = None,
        path: str | Path | None = None, writer: Any = None, every: int = 0,
    ):  # fmt: skip
        if every < 0:
            raise ValueError(f"every counts steps from one writing to the next and cannot be {every}")
        self.sim, self.path, self.writer, self.every = sim, path, writer, every
        self._observers = get_observers(observe, on_nonfinite)
        self._opened: Any = None  # the writer to a folder, while training

    @property
    def report(self) -> Report:
        """That of the simulation so far."""
        return self.sim.report()

    def begin(self) -> None:
        """Training starts. Raises RuntimeError outside of `with sim:`, where nothing would be emulated."""
        if not self.sim._emulation.active:
            raise RuntimeError("training outside of `with sim:` would not be emulated; start it inside the block")
        self.sim.observe(self._observers)

    def end_step(self, step: int) -> None:
        """So many steps have been made."""
        if self.every and step % self.every == 0:
            self.write(step)

    def write(self, step: int) -> None:
        """The report goes where it shall go."""
        if self.path is not None:
            self.report.save(self.path)
        if self.writer is None:
            return
        if self._opened is None and not is_writer(self.writer):
            self._opened = writer_to(self.writer)
        self.report.to_tensorboard(self._opened or self.writer, step)
        if self._opened is not None:
            self._opened.flush()  # a training that fails later says so to nobody

    def end(self, step: int) -> None:
        """Training ends, after so many steps."""
        self.write(step)
        if self._opened is not None:
            self._opened.close()
            self._opened = None
