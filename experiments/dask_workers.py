"""What every worker of a Dask cluster does first, those that replace others included."""

from __future__ import annotations

from typing import Any

from distributed import WorkerPlugin

from experiments.threads import one_thread


class OneThread(WorkerPlugin):
    """One thread of torch in each worker."""

    def setup(self, worker: Any) -> None:
        one_thread()
