"""Jobs of Kahan's and Neumaier's summation."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.accumulation.kinds import KAHAN, NEUMAIER
from fpsim.backend import numba as kernels
from fpsim.sums.packing import Panels
from fpsim.sums.tiles import Job


class KahanJob(Job):
    """A chain with a correction."""

    neumaier = False

    def _kernel(self, flags: int) -> Any:
        return kernels.compensated.make_compensated(
            self.element, self.tile_rows, self.vectors, self.rounding.code, flags, int(self.neumaier)
        )

    def _tallied(self, panels: Panels, out: np.ndarray) -> tuple[np.ndarray, ...]:
        return ()


class NeumaierJob(KahanJob):
    """A chain beside the sum of its errors."""

    neumaier = True


#: The kinds of accumulators, by name, whose tiles are computed otherwise than a tree's.
JOBS: dict[str, type[Job]] = {KAHAN.name: KahanJob, NEUMAIER.name: NeumaierJob}
