"""`Comparison`: one model and the same batches in several arithmetics, side by side."""

from __future__ import annotations

from typing import Any

from fpsim.report import comparing, pages, texts
from fpsim.report.runs import Runs
from fpsim.report.saving import save, write


class Comparison(Runs):
    """Runs from the same state on the same batches; the others are compared with the first. Iterates over them."""

    def to_json(self) -> str:
        """All of it as JSON text, from which `from_json` makes an equal one."""
        return texts.encode(self)

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """The comparison that `to_json` wrote. Raises ValueError for any other text."""
        return texts.decode(cls, text)

    def to_html(self, path: Any) -> None:
        """Write one self-contained page. Raises ImportError without Jinja2."""
        write(self.page(), path)

    def save(self, path: Any) -> None:
        """Write it as the path's suffix says: .html or .json. Raises ValueError for others, and what writing raises."""
        save(self, path)

    def page(self) -> str:
        """The page as text."""
        return pages.template("comparison.html").render(
            **comparing.context(self),
            reports=[(run, pages.context(run.report)) for run in self],
            first_style=pages.text("first_screen.css"),
            style=pages.text("page.css"),
            curve_style=pages.text("curves.css"),
        )

    def _repr_html_(self) -> str:
        style = pages.text("first_screen.css") + pages.text("curves.css")
        return pages.template("notebook_comparison.html").render(**comparing.context(self), first_style=style)
