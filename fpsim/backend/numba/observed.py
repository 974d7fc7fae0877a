"""What kernels of sums may observe: one list that deals the numbers, and one table of the steps that observe it.

The numbers are in the names of stored machine code: what was dealt keeps its number, and what is new goes to the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# NOTHING. `counted`: SUMS, every chain step that leaves its sum as it was, those of zero leaves too (the caller knows how many
# leaves are zero, and that nothing overflows); EVERYTHING, what the tallies' names say. `error_sums`: sums of ufp, or of its
# squares; for leaves that are exact or not (then they count too). `seldom_swamped`: chains run
# uncounted where nothing can be swamped; SWAMPED_ALONE looks for no largest sum.
(
    NOTHING, SUMS, EVERYTHING, MAGNITUDES, SQUARES, MAGNITUDES_EXACT_LEAVES, SQUARES_EXACT_LEAVES, SELDOM_SWAMPED, SEEKING,
    RECOUNTING, SWAMPED_ALONE,
) = range(-1, 10)  # fmt: skip

#: The kind of `tile_operations.TileOperation` for each.
TILE_OPERATIONS: dict[int, type[Any]] = {}


def observes(*numbers: int) -> Callable[[type[Any]], type[Any]]:
    """A decorator that makes a class the operation of what it observes. Raises ValueError where there is one."""

    def register(kind: type[Any]) -> type[Any]:
        for number in numbers:
            if number in TILE_OPERATIONS:
                raise ValueError(f"{kind.__name__}: {TILE_OPERATIONS[number].__name__} observes number {number} already")
            TILE_OPERATIONS[number] = kind
        return kind

    return register
