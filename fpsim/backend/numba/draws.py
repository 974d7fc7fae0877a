"""Draws for rounding one number an element, without rounding it."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.random import hash_range, step_draw


@kernel
def fill_draws(key: Any, first_element: Any, out: Any) -> None:
    """The 32 random bits, uint32, of the elements from `first_element` on, as every rounding of them draws at step 0."""
    hash_range(key, first_element, out)
    for i in range(out.size):
        out[i] = step_draw(out[i], np.uint32(0))
