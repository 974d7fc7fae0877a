"""`Report`: what happened to the numbers, where, when and why."""

from __future__ import annotations

from typing import Any

from fpsim.report import figures, frames, pages, scalars
from fpsim.report.data import ReportData
from fpsim.report.saving import Saved
from fpsim.report.terminal import as_text, rendered
from fpsim.report.verdict import Verdict, verdict_of


class Report(ReportData, Saved):
    """What was seen of an emulation: rows by module, operation and phase in the order of the network, events in theirs.

    policy      the arithmetic, as text
    limits      those of every format that results have
    observed    which of `records.PARTS` were looked at
    steps       optimizer steps, begun ones included
    losses      of every step, where they were kept
    dtype_lines lines of the model's source that look at dtypes, which mean little under a named format
    skipped     how often a loss scaler found gradients that are not finite, and so skipped a step
    ending      "" where all went well, or the one line that says what ended the run early
    measurement how well the whole did, where that is known

    Iterates over (module, operation, counts); `str` is a table.
    """

    @property
    def verdict(self) -> Verdict:
        """Whether the model survives this arithmetic, in a sentence."""
        return verdict_of(self)

    def page(self) -> str:
        return pages.page(self)

    def _repr_html_(self) -> str:
        return pages.fragment(self)

    def to_dataframe(self) -> Any:
        """The rows as a `pandas.DataFrame`; what was not observed is NaN. Raises ImportError without pandas."""
        return frames.to_dataframe(self)

    def plot(self, kind: str = "range") -> Any:
        """A matplotlib figure, the format's limits drawn in.

        kind : "range", magnitudes by module and pass; "weight", "activation" or "gradient", the share of each binade by module;
            or "losses". Raises ValueError for others, and where that was not observed, ImportError without matplotlib.
        """
        return figures.figure(self, kind)

    def to_tensorboard(self, writer: Any, step: int | None = None) -> None:
        """Shares of overflows and their like, errors, and histograms of exponents, at a step: left out, how many there were.

        writer : a `torch.utils.tensorboard.SummaryWriter` or what has its methods, or a folder, for which TensorBoard is
            needed: ImportError without it.
        """
        scalars.write(self, writer, step)

    def __str__(self) -> str:
        return as_text(rendered(self))

    def __rich__(self) -> Any:
        return rendered(self)
