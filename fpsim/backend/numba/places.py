"""Which elements meet in one place, for sums into places that indices name."""

from __future__ import annotations

import numpy as np

from fpsim.backend.numba.compiler import kernel


@kernel
def _count_and_sort(index: np.ndarray, starts: np.ndarray, ends: np.ndarray, order: np.ndarray) -> bool:
    rows = ends.size
    for place in index:
        if not 0 <= place < rows:
            return False
        starts[place + 1] += 1
    for row in range(rows):
        starts[row + 1] += starts[row]
        ends[row] = starts[row]
    for element in range(index.size):
        place = index[element]
        order[ends[place]] = element
        ends[place] += 1
    return True


def elements_by_place(index: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(order, starts): of place i those elements of `index` (n,) that name it, ascending, are order[starts[i] : starts[i + 1]].

    IndexError where one names none of the `rows` places.
    """
    starts, ends, order = (np.zeros(size, np.int64) for size in (rows + 1, rows, index.size))
    if not _count_and_sort(np.ascontiguousarray(index, np.int64), starts, ends, order):
        raise IndexError(f"index out of range: the places are 0 to {rows - 1}")
    return order, starts
