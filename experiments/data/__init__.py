"""Data: what every installation carries or can compute, and the standard files of others from a folder that the user names."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from experiments.data.dataset import Dataset
from experiments.data.digits import load_digits
from experiments.data.files import FILES, from_files
from experiments.data.shapes import load_shapes
from experiments.data.topics import load_topics

BUILT_IN = {"digits": load_digits, "shapes": load_shapes, "topics": load_topics}


def load(name: str, root: Path | None = None) -> Dataset:
    """A data set by name; files are in `root`, or in the folder that FPSIM_DATA names.

    Raises ValueError listing the names, or what `from_files` raises.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if name in FILES:
        return _kept(name, root or os.environ.get("FPSIM_DATA"))
    raise ValueError(f"there is no data set {name!r}; there are {', '.join((*BUILT_IN, *FILES))}")


@functools.cache
def _kept(name: str, root: Path | str | None) -> Dataset:
    return from_files(name, None if root is None else Path(root))


__all__ = ["BUILT_IN", "FILES", "Dataset", "load"]
