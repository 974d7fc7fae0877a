"""A bundle against emulation: for every operation whether the bits are equal, and which accumulator fits them best."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fpsim.accumulation import get_accumulator
from fpsim.emulation.replay.calls import Call, NotReplayed, written_flags
from fpsim.emulation.replay.candidates import ACCUMULATING, Candidate, candidates
from fpsim.emulation.replay.differences import Difference, compare
from fpsim.emulation.replay.instructions import check_instruction
from fpsim.emulation.replay.revealed import Orders, Revealed
from fpsim.recorder.bundle import Bundle, load
from fpsim.recorder.records import check_records

#: Section, operation, dtype, shape and flags: what makes a row.
Key = tuple[str, str, str, str, str]
#: Called before each group with how many are done, how many there are, and its name; at the end with the name "".
Progress = Callable[[int, int, str], None]


@dataclass
class CheckedRow:
    """One operation in one dtype under one setting of flags; a matrix product of one shape.

    shape      m x k x n of a product of matrices or vectors, the source of a conversion, else ""
    elements   compared over all calls and results; `differing` of them have other bits
    first      the first difference, and `where` it is: the call's label and number, the result's number
    fit        the accumulator (or other choice) whose bits these are; "" where there is no choice
    skipped    why there is nothing to compare, by reason; such calls are not among `calls`
    """

    section: str
    op: str
    dtype: str
    flags: dict[str, Any]
    shape: str = ""
    calls: int = 0
    elements: int = 0
    differing: int = 0
    first: Difference | None = None
    where: str = ""
    fit: str = ""
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def equal(self) -> bool | None:
        """Whether every compared bit is equal; None where nothing was compared."""
        return None if self.elements == 0 and self.calls == 0 else self.differing == 0

    def skip(self, reason: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1


@dataclass(frozen=True)
class CrossCheck:
    """The comparison of a bundle: what machine it is of, a row for each operation, and how far its masks tell a tree.

    stopped       why the recording ended early; None where it is complete
    masks         the order of each product that was probed
    without_tree  where there is no tree, or that of the first element alone, and why
    """

    environment: dict[str, Any]
    stopped: str | None
    rows: list[CheckedRow]
    masks: list[Revealed]
    without_tree: list[str]

    @property
    def equal(self) -> bool:
        """Whether every operation that could be compared has equal bits, and at least one could."""
        verdicts = [row.equal for row in self.rows if row.equal is not None]
        return bool(verdicts) and all(verdicts)


def crosscheck(
    bundle: Bundle | str | os.PathLike[str],
    accumulate: Any = None,
    progress: Progress = lambda done, total, name: None,
) -> CrossCheck:
    """Compute everything in a bundle again in emulation and compare the bits.

    Parameters
    ----------
    bundle : what `fpsim.record` or `fpsim record` made, on this machine or another; a path or what `load` gives.
    accumulate : what sums and products accumulate with; left out, the accumulator that fits best among the units, orders and
        revealed trees that there are, for each operation, dtype and setting of flags by itself.

    16-bit tensors are emulated as themselves, float32 as fp32 in emulation (not by this machine's own kernels), so that
    results do not depend on the machine that checks. NaN equals NaN whatever its payload.

    Raises
    ------
    BundleError : a file that is no bundle, that another version wrote, that is cut short, that was altered, or whose records
        are not such as the recorder writes.
    ValueError : an unknown accumulator.
    """
    fixed = None if accumulate is None else get_accumulator(accumulate)
    read = bundle if isinstance(bundle, Bundle) else load(bundle)
    check_records(read)
    revealed = Orders.of_bundle(read)
    groups: dict[Key, list[Call]] = {}
    tiles: dict[Key, list[dict[str, Any]]] = {}
    for record in read.records:
        if record["kind"] == "call":
            call = Call(read, record)
            groups.setdefault(_key(call), []).append(call)
        elif record["kind"] == "instruction":
            key = (record["section"], record["op"], record.get("operand", ""), "", written_flags(record))
            tiles.setdefault(key, []).append(record)
    total = len(groups) + len(tiles)
    rows: list[CheckedRow] = []

    def begin(key: Key, record: dict[str, Any]) -> CheckedRow:
        section, op, dtype, shape, _ = key
        progress(len(rows), total, f"{section}: {op}")
        rows.append(CheckedRow(section, op, dtype, record.get("flags", {}), shape))
        return rows[-1]

    fitting = _fitting_all(groups, revealed, lambda op: progress(0, total, op)) if fixed is None else {}
    for key, calls in groups.items():
        _check_calls(begin(key, calls[0].record), calls, revealed, fixed, fitting.get((key[1], key[2], key[4])))
    for key, records in tiles.items():
        check_instruction(begin(key, records[0]), read, records, fixed)
    progress(total, total, "")
    return CrossCheck(read.environment, read.stopped, rows, list(revealed.found.values()), revealed.reasons)


def _key(call: Call) -> Key:
    compared = call.refusal is None
    section, op = call.record["section"], call.record["op"]
    return section, op, call.dtype if compared else "", call.kind if compared else "", written_flags(call.record)


def _fitting_all(
    groups: dict[Key, list[Call]], revealed: Orders, progress: Callable[[str], None]
) -> dict[tuple[str, ...], Candidate]:
    """By operation, dtype and flags: what fits the matrix products of all shapes, where anything does."""
    calls: dict[tuple[str, ...], list[Call]] = {}
    for (_, op, dtype, _, flags), members in groups.items():
        products = [call for call in members if call.refusal is None and call.shape is not None]
        if products:
            calls.setdefault((op, dtype, flags), []).extend(products)
    fitting = {}
    for key, several in calls.items():
        progress(key[0])
        hardest = sorted(several, key=lambda call: (call.record.get("label") != "cancelling", -(call.terms or 0)))
        for candidate in candidates(hardest[0], revealed):
            row = _with(candidate, CheckedRow("", "", "", {}), hardest, None, until=1)
            if row is not None and row.differing == 0 and not row.skipped:
                fitting[key] = candidate
                break
    return fitting


def _check_calls(row: CheckedRow, calls: list[Call], revealed: Orders, fixed: Any, common: Candidate | None) -> None:
    """Fill a row with the candidate that fits its calls best; `common` is tried first."""
    usable = [call for call in calls if call.refusal is None]
    for call in calls:
        if call.refusal is not None:
            row.skip(call.refusal)
    if not usable:
        return
    longest = max(usable, key=lambda call: call.terms or 0)
    tried = itertools.chain([common] if common is not None else [], candidates(longest, revealed))
    if fixed is not None and longest.family in ACCUMULATING:
        tried = itertools.chain([Candidate(str(fixed), fixed)])
    best: CheckedRow | None = None
    for candidate in tried:
        fit = _with(candidate, row, usable, best)
        if fit is not None and (best is None or _rank(fit) < _rank(best)):
            best = fit
        if best is not None and best.differing == 0 and not best.skipped:
            break
    if best is None:
        row.skip("no accumulator takes it")
        return
    for name in ("calls", "elements", "differing", "first", "where", "fit"):
        setattr(row, name, getattr(best, name))
    for reason, count in best.skipped.items():
        row.skipped[reason] = row.skipped.get(reason, 0) + count


def _rank(row: CheckedRow) -> tuple[int, int]:
    return sum(row.skipped.values()), row.differing


def _with(
    candidate: Candidate, like: CheckedRow, calls: list[Call], best: CheckedRow | None, until: int | None = None
) -> CheckedRow | None:
    """What a candidate gives; None where it says nothing of these calls, or before the end is worse than the best.

    `until`: or differs in that many elements.
    """
    worst = until if best is None or best.skipped else best.differing
    row = CheckedRow(like.section, like.op, like.dtype, like.flags, like.shape, fit=candidate.name)
    for number, call in enumerate(calls):
        try:
            emulated = candidate.replay(call)
        except ValueError:
            return None
        except NotReplayed as reason:
            row.skip(str(reason))
            continue
        row.calls += 1
        for place, (left, right) in enumerate(zip(call.results(), emulated, strict=True)):
            row.elements += left.numel()
            difference = compare(left, right)
            if difference is None:
                continue
            row.differing += difference.count
            if row.first is None:
                label = call.record.get("label", "")
                result = f", result {place}" if len(emulated) > 1 else ""
                row.first, row.where = difference, f"{label + ' ' if label else ''}call {number}{result}"
        if worst is not None and row.differing >= worst > 0:
            return None
    return row
