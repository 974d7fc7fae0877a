"""Reports, comparisons and advice as files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

from fpsim.report import texts


class Saved(ABC):
    """A dataclass that is kept as JSON and shown as a page."""

    def to_json(self) -> str:
        """All of it as JSON text, from which `from_json` makes an equal one."""
        return texts.encode(self)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote. Raises ValueError for any other text."""
        return texts.decode(cls, text)

    def to_html(self, path: Any) -> None:
        """Write one self-contained page that asks no network for anything. Raises ImportError without Jinja2."""
        _write(self.page(), path)

    @abstractmethod
    def page(self) -> str:
        """The page as text."""

    def save(self, path: Any) -> None:
        """Write it as the path's suffix says: .html or .json. Raises ValueError for others, and what writing raises."""
        match Path(path).suffix:
            case ".html":
                self.to_html(path)
            case ".json":
                _write(self.to_json(), path)
            case suffix:
                raise ValueError(f"it is saved as .html or as .json, not as {suffix!r}")


def _write(text: str, path: Any) -> None:
    """Write text as UTF-8."""
    Path(path).write_text(text, encoding="utf-8")
