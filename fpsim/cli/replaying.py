"""The process in which `fpsim crosscheck` replays a bundle, so that what ends it ends nothing else.

It writes lines of JSON: `{"at": [done, total, name]}` before each operation, and at the end `{"found": ...}`, what there is to
print, or `{"error": ...}`, one sentence. Nothing that comes from a bundle crosses as anything but numbers and text.
"""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

from fpsim.emulation.machine.policy import make_policy
from fpsim.emulation.replay import CheckedRow, CrossCheck, crosscheck, crosscheck_model
from fpsim.hardware import UnconfirmedUnit
from fpsim.recorder.bundle import load

MEMORY = 8 << 30


def main(path: str, accumulate: str | None) -> None:
    """Replay the bundle in a file."""
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no line of this

    def say(**message: Any) -> None:
        lines.write(json.dumps(message) + "\n")
        lines.flush()

    _limit_memory()
    warnings.simplefilter("ignore", UnconfirmedUnit)  # the search tries every unit
    try:
        read = load(path)
        checked = crosscheck(read, accumulate, lambda *at: say(at=at))
        of_model = None
        if any(record["section"] == "model" for record in read.records):
            of_model = crosscheck_model(read, make_policy("native", accumulate), lambda *at: say(at=at))
    except (ValueError, OSError, NotImplementedError) as error:  # a refusal: the parent prints its sentence and exits with 2
        say(error=str(error))
        return
    before, after = _machine(checked), _ending(checked)
    rows = [_cells(row) for row in checked.rows]
    say(found={"before": before, "rows": rows, "after": after, "model": of_model and str(of_model)})


def _limit_memory() -> None:
    """Let an allocation beyond the limit fail, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))


def _machine(checked: CrossCheck) -> list[str]:
    """What the bundle says of its machine; it may say nothing."""

    def said(*keys: str) -> str:
        value: Any = checked.environment
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return "unknown" if value is None else str(value)

    if checked.environment.get("gpu"):
        where = f"{said('gpu', 'name')}, driver {said('gpu', 'driver')}"
    else:
        where = f"{said('processor', 'name')}, {said('vector_instructions')}"
    return [f"recorded on {where}, torch {said('torch')}", *([f"stopped {checked.stopped}"] if checked.stopped else [])]


def _cells(row: CheckedRow) -> dict[str, Any]:
    verdict = {True: "equal", False: "differ", None: "-"}[row.equal]
    share = f"{row.differing} of {row.elements}" if row.elements else ""
    flags = "".join(f" {name}={value}" for name, value in row.flags.items())
    reason = "; ".join(f"not compared: {text}" for text in row.skipped)
    first = f"{row.where} {row.first}" if row.first is not None else ""
    name = f"{row.op.removeprefix('aten.')} {row.shape}".strip() + flags
    last = "; ".join(part for part in (first, reason) if part)
    return {"equal": row.equal, "cells": [name, row.dtype, verdict, share, row.fit, last]}


def _ending(checked: CrossCheck) -> list[str]:
    compared = [row for row in checked.rows if row.equal is not None]
    equal = sum(bool(row.equal) for row in compared)
    others = len(checked.rows) - len(compared)
    lines = [f"{equal} of {len(compared)} operations have equal bits; {others} could not be compared"]
    if checked.masks:
        lines.append(f"the orders of {len(checked.masks)} products were revealed")
    return lines + checked.without_tree
