"""What the plain command tries of a test's cases; the others `pytest -m exhaustive` tries, mostly kernels of one more mode."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def often(cases: Iterable[Any], chosen: Iterable[Any] | Callable[[Any], bool]) -> list[Any]:
    """The cases as parameters, a tuple for several; those chosen are tried by the plain command."""
    among = chosen if callable(chosen) else list(chosen).__contains__
    found = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        found.append(pytest.param(*values, marks=() if among(case) else pytest.mark.exhaustive))
    return found
