"""Packages that showing a report needs, beyond those that fpsim always needs."""

from __future__ import annotations

import importlib
from typing import Any


def needed(package: str, extra: str = "report") -> Any:
    """The package. Raises ImportError, naming the extra, where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        sentence = f"this needs {package}: install the extra `{extra}`, pip install -c constraints.txt '.[{extra}]'"
        raise ImportError(sentence, name=package) from None
