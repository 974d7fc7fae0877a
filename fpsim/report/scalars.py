"""A report as TensorBoard scalars and histograms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fpsim.report.counts import Histogram, summed
from fpsim.report.data import ReportData
from fpsim.report.extra import needed
from fpsim.report.plain import plain

_COUNTS = ("overflows", "underflows", "nonfinite", "subnormals", "swamped", "lost")


def write(report: ReportData, writer: Any, step: int | None = None) -> None:
    """Hand all of it to a `torch.utils.tensorboard.SummaryWriter`, or to one made for a folder, which is closed again.

    Raises ImportError where a folder is given and tensorboard is not installed.
    """
    at = report.steps if step is None else step
    if not is_writer(writer):
        with writer_to(writer) as made:
            return write(report, made, at)
    for tag, value in scalars(report):
        writer.add_scalar(tag, value, at)
    for item in report.distributions:
        if item.histogram.counts:
            writer.add_histogram_raw(f"exponents/{item.role}/{_name(item.module)}", **_raw(item.histogram), global_step=at)


def is_writer(writer: Any) -> bool:
    """Whether it writes; else it is a folder."""
    return hasattr(writer, "add_scalar")


def writer_to(folder: Any) -> Any:
    """A `SummaryWriter` of a new file in the folder. Raises ImportError where tensorboard is not installed."""
    return needed("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder))


def scalars(report: ReportData) -> Iterator[tuple[str, float]]:
    """Names and numbers: counts since the start by module and pass and in all, as shares of the results, and errors.

    Shares of `swamped` are of the additions, those of `lost` of the updates. What was not seen at all has no name.
    """
    groups = summed(((_name(row.module), row.phase or "results"), row.counts) for row in report.rows)
    for (module, phase), counts in (*groups.items(), (("all", ""), report.total)):
        for name in _COUNTS:
            whole = {"swamped": counts.additions, "lost": counts.updates}.get(name, counts.elements)
            if whole:
                yield "/".join(filter(None, (name, phase, module))), getattr(counts, name) / whole
    for row in report.rows:
        for name, error in (("error", row.cumulative), ("local error", row.local)):
            if error is not None and error.elements:
                yield f"{name}/{row.phase}/{_name(row.module)}/{plain(row.operation)}", error.relative


def _name(module: str) -> str:
    return plain(module) or "(outside)"


def _raw(histogram: Histogram) -> dict[str, Any]:
    """Exponents as TensorBoard has a histogram: a bucket for each, up to the next."""
    count = len(histogram.counts)
    exponents = range(histogram.first, histogram.first + count)
    pairs = list(zip(exponents, histogram.counts, strict=True))
    return {
        "min": float(exponents[0]), "max": float(exponents[-1]), "num": sum(histogram.counts),
        "sum": float(sum(e * n for e, n in pairs)), "sum_squares": float(sum(e * e * n for e, n in pairs)),
        "bucket_limits": [e + 0.5 for e in exponents], "bucket_counts": list(map(float, histogram.counts)),
    }  # fmt: skip
