"""Reports and comparisons as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save(shown: Any, path: Any) -> None:
    """Write what has `to_html` and `to_json` as the path's suffix says. Raises ValueError for other suffixes."""
    match Path(path).suffix:
        case ".html":
            shown.to_html(path)
        case ".json":
            write(shown.to_json(), path)
        case suffix:
            raise ValueError(f"it is saved as .html or as .json, not as {suffix!r}")


def write(text: str, path: Any) -> None:
    """Write text as UTF-8."""
    Path(path).write_text(text, encoding="utf-8")
