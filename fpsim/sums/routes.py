"""The ways to compute a sum of products, the first that serves being taken: all that serve give the same bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fpsim.accumulation.kinds import EXACT, KAHAN, NATIVE, NEUMAIER, PARTS, TREE, UNIT, Kind
from fpsim.numbers.computing import is_float64
from fpsim.sums.exact import exact_product
from fpsim.sums.orientation import oriented
from fpsim.sums.parts import parts_product
from fpsim.sums.plan import Plan, plan
from fpsim.sums.rows import can_read
from fpsim.sums.task import Draws, Sum
from fpsim.sums.trees import CHUNK, product, row_product, wide_product
from fpsim.sums.units.products import unit_product
from fpsim.sums.wide_nodes import node_product

Addends = Sequence[np.ndarray]
_Runs = Callable[[Sum, np.ndarray, np.ndarray, Addends, Draws], np.ndarray]


@dataclass(frozen=True)
class Route:
    """A way to compute a @ b and the addends that belong to the sum: `run(task, a, b, addends, draws)`.

    It serves tasks of its kinds where `serves(task, a, b)` says so.
    """

    name: str
    kinds: tuple[Kind, ...]
    serves: Callable[[Sum, np.ndarray, np.ndarray], bool]
    run: _Runs


def _always(task: Sum, a: np.ndarray, b: np.ndarray) -> bool:
    return True


def _is_binary(task: Sum, a: np.ndarray, b: np.ndarray) -> bool:
    return plan(task, a.shape[1]).is_binary


def _is_no_float64(task: Sum, a: np.ndarray, b: np.ndarray) -> bool:
    return not is_float64(task.target)


def _can_be_careful(task: Sum, a: np.ndarray, b: np.ndarray) -> bool:
    return _is_no_float64(task, a, b) and _is_binary(task, a, b)


def _reads_a_row(task: Sum, a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape[0] != 1 or b.size <= CHUNK // 16:
        return False
    planned = plan(task, a.shape[1])
    return planned.is_one_chain and can_read(a, b, task.rounding, planned.scheme)


def _is_wide(task: Sum, a: np.ndarray, b: np.ndarray) -> bool:
    large = a.shape[0] <= 4 and b.shape[1] > 128 and b.size > CHUNK and b.strides[1] != b.itemsize
    return large and _is_binary(task, a, b)


def _planned(compute: Callable[[Plan, np.ndarray, np.ndarray, Draws], np.ndarray], careful: bool = False) -> _Runs:
    """What computes by a plan, as a route's `run`."""

    def run(task: Sum, a: np.ndarray, b: np.ndarray, addends: Addends, draws: Draws) -> np.ndarray:
        planned = plan(task, a.shape[1])
        return compute(planned.careful if careful else planned, a, b, draws)

    return run


def _native(task: Sum, a: np.ndarray, b: np.ndarray, addends: Addends, draws: Draws) -> np.ndarray:
    """NumPy's own product in float32 (float64 operands: float64), whatever its order."""
    task.require_arithmetic()
    with np.errstate(all="ignore"):
        return np.matmul(a, b)


def _unit(task: Sum, a: np.ndarray, b: np.ndarray, addends: Addends, draws: Draws) -> np.ndarray:
    left, right = task.left.enclosing, task.right.enclosing
    formats = left if left == right else (left, right)
    return unit_product(a, b, formats, task.accumulator, addends[0] if addends else None)


_CHAINED = (TREE, KAHAN, NEUMAIER)

#: Every route, in the order in which they are asked. The careful ones look after everything, in float64.
ROUTES: tuple[Route, ...] = (
    Route("row", (TREE,), _reads_a_row, _planned(row_product)),
    Route("wide", _CHAINED, _is_wide, _planned(wide_product)),
    Route("tiles", _CHAINED, _is_binary, _planned(product)),
    Route("careful tiles", _CHAINED, _can_be_careful, _planned(product, careful=True)),
    Route("nodes", (TREE,), _always, _planned(node_product)),
    Route("parts", (PARTS,), _always, _planned(parts_product)),
    Route("careful parts", (PARTS,), _is_no_float64, _planned(parts_product, careful=True)),
    Route("exact", (EXACT,), _always, lambda task, a, b, addends, draws: exact_product(task, a, b, addends, draws)),
    Route("native", (NATIVE,), _always, _native),
    Route("unit", (UNIT,), _always, _unit),
)
_OF: dict[str, list[Route]] = {}  # by the name of a kind
for _route in ROUTES:
    for _kind in _route.kinds:
        _OF.setdefault(_kind.name, []).append(_route)


@oriented
def accumulate(task: Sum, a: np.ndarray, b: np.ndarray, draws: Draws, addends: Addends = ()) -> np.ndarray:
    """a @ b, with the addends that belong to the sum: a new array of values of `task.held`."""
    for route in _OF[task.accumulator.kind.name]:
        if route.serves(task, a, b):
            return route.run(task, a, b, addends, draws)
    raise AssertionError(f"no route for {task}")  # the last one serves everything
