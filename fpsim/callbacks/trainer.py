"""A callback for the `Trainer` of transformers. Importing this module needs that package."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from fpsim.callbacks.reporting import Reporting


class TrainerReporting(Reporting, TrainerCallback):  # type: ignore[misc]
    """`Reporting` for `Trainer(model=sim.model, callbacks=[TrainerReporting(sim)])`, which trains within `with sim:`."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.end_step(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.end(state.global_step)
