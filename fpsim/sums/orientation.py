"""Which way round a product is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from fpsim.sums.task import Draws, Sum

_Function = TypeVar("_Function", bound=Callable[..., Any])
_FEW_COLUMNS = 32  # fewer leave most of a panel empty


def has_few_columns(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether a @ b has few columns, and more rows."""
    return b.shape[-1] < _FEW_COLUMNS and a.shape[-2] > b.shape[-1]


def is_turned(task: Sum, a: np.ndarray, b: np.ndarray) -> bool:
    """Whether few columns and many rows change places, which gives the transposed product.

    Products commute, and draws are numbered by element; a library's own product is left as it is.
    """
    return has_few_columns(a, b) and task.accumulator.kind.is_symmetric


def oriented(compute: _Function) -> _Function:
    """`compute(task, a, b, draws, *rest)`, turned where `is_turned` says so. Addends have the shape of the result."""

    @wraps(compute)
    def turned(task: Sum, a: np.ndarray, b: np.ndarray, draws: Draws, *rest: Any, addends: Sequence[np.ndarray] = ()) -> Any:
        if b.shape[-1] >= _FEW_COLUMNS or not is_turned(task, a, b):
            return compute(task, a, b, draws, *rest, addends=addends) if addends else compute(task, a, b, draws, *rest)
        more = {"addends": [term.T for term in addends]} if addends else {}
        return compute(task.transposed, b.T, a.T, draws.transposed, *rest, **more).T

    return turned  # type: ignore[return-value]
