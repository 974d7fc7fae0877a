"""Every compiled kernel: numbers in, numbers out. Imports nothing of fpsim outside this folder.

Whoever writes `from fpsim.backend import numba as kernels` has each module here when it is first named (`kernels.exact`), for
Numba takes long to load, and so do kernels that nobody runs (PEP 562).
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fpsim.backend.numba import (
        arithmetic as arithmetic,
        batches as batches,
        block_bounds as block_bounds,
        blocks as blocks,
        chains as chains,
        compensated as compensated,
        counting as counting,
        draws as draws,
        error_sums as error_sums,
        exact as exact,
        functions as functions,
        intrinsics as intrinsics,
        lanes as lanes,
        membership as membership,
        patches as patches,
        reductions as reductions,
        rounding as rounding,
        rows as rows,
        seldom_swamped as seldom_swamped,
        swamped_batches as swamped_batches,
        tables as tables,
        unit_steps as unit_steps,
        zero_leaves as zero_leaves,
    )
else:

    def __getattr__(name: str) -> ModuleType:
        if name.startswith("__"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module(f"{__name__}.{name}")
