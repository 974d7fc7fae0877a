"""`Advice`: what to change, and what was tried."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from fpsim.report.advised import OUTCOMES, AdviceData, Attempt, Sensitivity
from fpsim.report.plain import plain
from fpsim.report.saving import Saved
from fpsim.report.terminal import as_text, heading
from fpsim.report.verdict import counted

_SHOWN = 8  # attempts of an outcome
_KIND = {"restores": "restores agreement", "helps": "helps, not enough"}


class Advice(AdviceData, Saved):
    """What came of a step in an arithmetic, and which changes bring it back to what float64 computes.

    report           of the run as it is, with the fixes in it
    deviation        how far that run is from the float64 shadow, in the steps that changes were tried on
    tolerance        up to which relative error runs agree
    price            the error of the format's precision alone; infinite where that breaks too
    steps            how many batches there were
    window           the first of the steps that changes were tried on, and how many they are
    agrees           whether that run agrees as it is; then nothing was tried
    attempts         every change that answers what was seen, in the order in which they were tried
    sensitivity      of each module, where it was asked for
    exact_is_finite  whether float64 itself makes no infinities or NaN; what is infinite there is not compared

    `str` and `rich.print` show the verdict, what broke first, the fixes as code to paste, and what did not help.
    """

    @property
    def verdict(self) -> str:
        """In one sentence or two: what became of the run, and what mends it."""
        if self.agrees:
            even_so = "It" if self.report.verdict.word == "survives" else "Even so it"
            mended = f"{even_so} agrees with float64 to within {self.tolerance:.2g}: nothing to change."
        elif not self._tried:
            mended = "No change could be tried."
        elif not self.fixes:
            mended = f"None of {counted(self._tried, 'change')} restores agreement with float64."
        else:
            fixing = sum(attempt.outcome == "restores" for attempt in self.attempts)
            some = f"{fixing} of {counted(self._tried, 'change')} restore{'s' * (fixing == 1)} agreement with float64"
            mended = f"{some}; the cheapest: {self.fixes[0].title}."
        beyond = "" if self.exact_is_finite else " Float64 makes infinities or NaN here as well."
        return f"{self.report.verdict.sentence} {mended}{beyond}"

    @property
    def _tried(self) -> int:
        return sum(attempt.outcome != "not tried" for attempt in self.attempts)

    def page(self) -> str:
        """That of the report, whose fixes these are."""
        return self.report.page()

    def __str__(self) -> str:
        return as_text(self.__rich__())

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = [Text(plain(self.verdict), style="bold"), heading(replace(self.report, fixes=()), verdict=False)]
        for number, fix in enumerate(self.fixes, 1):
            parts.append(Text(f"\n{number}. {plain(fix.title)}: verified, {plain(fix.evidence)}", style="bold green"))
            parts += [Text(f"   {plain(line)}") for line in fix.code.splitlines()]
        pasted = {fix.code for fix in self.fixes}
        others = sorted((item for item in self.attempts if item.code not in pasted), key=lambda item: (item.error, item.cost))
        for outcome in OUTCOMES:
            rows = [attempt for attempt in others if attempt.outcome == outcome]
            if rows:
                parts += [Text(f"\n{_KIND.get(outcome, outcome)}:", style="bold"), *map(_line, rows[:_SHOWN])]
            if len(rows) > _SHOWN:
                parts.append(Text(f"  and {len(rows) - _SHOWN} more: attempts has all", style="dim"))
        if self.sensitivity:
            parts += [Text("\nerror of each module:", style="bold"), _table(self.sensitivity)]
        return Group(*parts)


def _line(attempt: Attempt) -> Any:
    from rich.text import Text

    error = "" if math.isnan(attempt.error) else f", error {attempt.error:.2g}"
    return Text(f"  {plain(attempt.title)}{error}{plain(attempt.reason and f': {attempt.reason}')}", style="dim")


def _table(rows: tuple[Sensitivity, ...]) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("module", "kind", "narrow alone", "fp32 alone"):
        table.add_column(name, justify="right" if name.endswith("alone") else "left")
    for row in rows:
        table.add_row(plain(row.module) or "-", plain(row.kind), f"{row.narrow:.2g}", f"{row.wide:.2g}")
    return table
