"""A callback for Lightning's `Trainer`. Importing this module needs the package `lightning`."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from fpsim.callbacks.reporting import Reporting


class LightningReporting(Reporting, Callback):  # type: ignore[misc]
    """`Reporting` for `Trainer(callbacks=[LightningReporting(sim)])`, whose `fit` is called within `with sim:`."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.begin()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.end_step(trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.end(trainer.global_step)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.end(trainer.global_step)
