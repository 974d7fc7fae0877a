"""`Comparison`: one model and the same batches in several arithmetics, side by side."""

from __future__ import annotations

from fpsim.report import comparing, pages
from fpsim.report.runs import Runs
from fpsim.report.saving import Saved


class Comparison(Runs, Saved):
    """Runs from the same state on the same batches; the others are compared with the first. Iterates over them."""

    def page(self) -> str:
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
