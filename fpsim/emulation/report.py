"""Reports of what emulations have counted, and of what their observers have seen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from fpsim.emulation.dtype_lines import dtype_lines_of
from fpsim.emulation.machine.policy import Policy
from fpsim.emulation.machine.rows import FORMATS_MET, counts_of
from fpsim.numbers.formats import get_format
from fpsim.report.counts import Counts, Range
from fpsim.report.records import PARTS, PHASES, Distribution, DtypeLine, Event, Limits, Module, Row, Treatment
from fpsim.report.report import Report

Key = tuple[str, str, str, str]  # module, operation, phase, format: as text


@dataclass
class Draft:
    """What observers add to a report."""

    rows: dict[Key, Row] = field(default_factory=dict)
    observed: list[str] = field(default_factory=lambda: ["counts"])
    distributions: list[Distribution] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    coverage: list[Treatment] = field(default_factory=list)

    def add(self, key: Key, counts: Counts | None = None, magnitudes: Range | None = None, **others: Any) -> None:
        """Add counts and widen the range of a row; others are set."""
        module, operation, phase, fmt = key
        row = self.rows.get(key) or Row(module, operation, phase, format=fmt)
        counts = row.counts if counts is None else row.counts + counts
        self.rows[key] = replace(row, counts=counts, range=row.range | (magnitudes or Range()), **others)


def make_report(emulation: Any) -> Report:
    """The report of an `Emulation`: rows in the order of the network, then of the passes, then of the operations."""
    draft = Draft()
    for where, row in emulation.rows().items():
        key = where.module, name_of_operation(where.operation), where.phase, where.format
        draft.add(key, counts_of(where.saturates, row))
    for observer in emulation.observers:
        observer.contribute(draft)
    paths = dict.fromkeys((*emulation.modules, *(key[0] for key in draft.rows)))
    order = {path: index for index, path in enumerate(paths)}
    return Report(
        str(emulation.policy),
        tuple(sorted(draft.rows.values(), key=lambda row: (order[row.module], PHASES.index(row.phase)))),
        limits=tuple(Limits.of(FORMATS_MET[name]) for name in dict.fromkeys(key[3] for key in draft.rows)),
        observed=tuple(part for part in PARTS if part in draft.observed),
        steps=emulation.training_step,
        modules=tuple(Module(path, kind.__name__, parameters) for path, (kind, parameters) in emulation.modules.items()),
        distributions=tuple(draft.distributions),
        events=tuple(draft.events),
        coverage=tuple(draft.coverage),
        dtype_lines=_dtype_lines(emulation),
        skipped=emulation.skipped,
    )


def _dtype_lines(emulation: Any) -> tuple[DtypeLine, ...]:
    """Those of the modules that were called, under a named format: else dtypes mean what they say."""
    policy = emulation.policy
    if policy.is_native or policy.is_identity or (type(policy) is Policy and policy.fmt == get_format("fp32")):
        return ()
    return dtype_lines_of(kind for kind, _ in emulation.modules.values())


@lru_cache(maxsize=4096)
def name_of_operation(operation: Any) -> str:
    """An operation's name in reports: `addmm`, `add_.Tensor`."""
    return str(operation).removeprefix("aten.").removesuffix(".default")
