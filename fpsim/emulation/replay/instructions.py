"""Single matrix instructions of a bundle, against the units that have such operands and outputs."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from fpsim.accumulation import get_accumulator
from fpsim.emulation.replay.candidates import unit_groups
from fpsim.emulation.replay.conversions import FORMATS, converted
from fpsim.emulation.replay.differences import compare
from fpsim.emulation.replay.tensors import tensor_of
from fpsim.hardware import UnconfirmedUnit, product
from fpsim.recorder.bundle import Bundle

_OPERANDS = {**FORMATS, "tf32": "tf32"}


def check_instruction(row: Any, bundle: Bundle, records: list[dict[str, Any]], fixed: Any) -> None:
    """Fill a row with the unit that fits the tiles of one instruction best; `fixed`, an accumulator, is the only one to try."""
    usable = []
    for record in records:
        reason = record.get("skipped") or _refusal(bundle, record)
        if reason is not None:
            row.skip(reason)
        else:
            usable.append(record)
    if not usable:
        return
    operand = _OPERANDS[usable[0]["operand"]]
    output = FORMATS[bundle.tensors[usable[0]["d"]["tensor"]][0]]
    groups = [group for group in unit_groups(operand) if group[0][0].endswith(f":{output}")]
    if fixed is not None:
        fixed_name = f"{fixed.unit.name if fixed.unit is not None else fixed}:{output}"
        groups = [([fixed_name], "") for names, _ in groups if fixed_name in names]
    best: Any = None
    for names, alike in groups:
        mismatches = _mismatches(bundle, usable, names[0], operand)
        if best is None or mismatches[0] < best[0]:
            best = (*mismatches, f"{get_accumulator(names[0])}{alike}")
        if best[0] == 0:
            break
    if best is None:
        row.skip("no unit takes it")
        return
    row.differing, row.first, row.where, row.fit = best
    row.calls = len(usable)
    row.elements = sum(tensor_of(bundle, record["d"]["tensor"]).numel() for record in usable)


def _refusal(bundle: Bundle, record: dict[str, Any]) -> str | None:
    """Why tiles cannot be multiplied: they are of other dtypes or shapes than any instruction's; None where they can."""
    (a, left, *_), (b, right, *_), (c, start, *_), (d, result, *_) = (bundle.tensors[record[name]["tensor"]] for name in "abcd")
    if record["operand"] not in _OPERANDS or not {a, b, c, d} <= FORMATS.keys() or c != d:
        return "its operands are of dtypes that no instruction takes"
    if len(left) != 3 or len(right) != 3 or left[0] != right[0] or left[2] != right[1] or 0 in (*left, *right):
        return "its tiles have other shapes than an instruction's"
    if not start == result == (left[0], left[1], right[2]):
        return "its tiles have other shapes than an instruction's"
    return None


def _mismatches(bundle: Bundle, records: list[dict[str, Any]], unit: str, operand: str) -> tuple[int, Any, str]:
    """How many elements differ, the first difference, and where it is."""
    total, first, where = 0, None, ""
    for record in records:
        a, b, c, d = (tensor_of(bundle, record[name]["tensor"]) for name in "abcd")
        left, right, start = (x.float().numpy() for x in (a, b, c))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnconfirmedUnit)
            tiles = [
                product(*three[:2], unit=unit, fmt=operand, addend=three[2]) for three in zip(left, right, start, strict=True)
            ]
        emulated = converted(torch.from_numpy(np.stack(tiles)), d.dtype)
        difference = compare(d, emulated)
        if difference is not None:
            total += difference.count
            if first is None:
                first, where = difference, record.get("label", "")
    return total, first, where
