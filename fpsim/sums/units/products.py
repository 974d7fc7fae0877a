"""Products of matrices as hardware units make them.

Every function takes float32 or float64 matrices of values of the operand format and the addend that the sums start from, and
returns a new matrix of values of the output format. `accumulation/instructions.py` says what each model does.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np

from fpsim.accumulation.accumulator import Accumulator
from fpsim.accumulation.instructions import Formats, formats_of_both
from fpsim.accumulation.orders import sequential, split_edges
from fpsim.numbers.rounding import Rounding, round_into
from fpsim.sums.units.blocks import around_specials
from fpsim.sums.units.chains import chain
from fpsim.sums.units.step_kernels import step_product
from fpsim.sums.units.steps import MODELS

_NEAREST = Rounding.NEAREST_EVEN
_warned: set[tuple[str, str]] = set()


class UnconfirmedUnit(UserWarning):
    """A unit's model rests on documents or published models and has been compared with no hardware."""


def unit_product(
    a: np.ndarray, b: np.ndarray, fmt: Formats, accumulator: Accumulator, addend: np.ndarray | None = None
) -> np.ndarray:
    """addend + a @ b as the unit's instruction for operands of `fmt` (one format, or one for each) gives it, in the
    accumulator's format.

    The addend holds values of that format and broadcasts; left out, +0. Where the terms are split, each part starts from +0
    and the parts, then the addend, are added to nearest even in that format. A product of zero and infinity, infinities of both
    signs and NaN give NaN, other infinities stay. Raises ValueError for operands that the unit does not take.
    """
    assert accumulator.unit is not None
    name = accumulator.format.name
    row = accumulator.unit.instruction(fmt, name)
    unit, output = accumulator.unit.name, row.outputs[name]
    what, verified, source = f"{', '.join(row.operands)} operands and {name} output", output.verified, output.source
    left, right = formats_of_both(fmt)
    if left != right:
        what, verified = f"{left.name} by {right.name} and {name} output", False
        source = f"it is computed as that of operands of one format, of which the row says: {source}"
    warn_once(unit, what, verified, f"unit {unit} with {what} is unconfirmed: {source}")
    if accumulator.order.name == "split":
        return _split_product(a, b, fmt, accumulator, addend)
    shape = (a.shape[0], b.shape[1])
    with np.errstate(invalid="ignore"):  # widening a signaling NaN is no error here
        start = np.zeros(shape) if addend is None else np.array(np.broadcast_to(addend, shape), np.float64)
    if 0 in shape or a.shape[1] == 0:
        return start
    if row.model in ("block", "emulated"):
        return around_specials(a, b, fmt, row, output, start)
    if row.model == "chain":
        return chain(a, b, fmt, row, output.format, start)
    result = step_product(a, b, fmt, row, start)
    return MODELS[row.model](a, b, fmt, row, start) if result is None else result


def _split_product(
    a: np.ndarray, b: np.ndarray, fmt: Formats, accumulator: Accumulator, addend: np.ndarray | None
) -> np.ndarray:
    """The parts of split(k), each a product of the unit, added one after the other."""
    whole = replace(accumulator, order=sequential)
    edges = split_edges(a.shape[1], accumulator.order.parameters[0])
    terms = [unit_product(a[:, i:j], b[i:j], fmt, whole).astype(np.float64) for i, j in pairwise(edges)]
    if addend is not None:
        terms.append(np.broadcast_to(addend, terms[0].shape).astype(np.float64))
    total = terms[0]
    for term in terms[1:]:
        with np.errstate(invalid="ignore"):
            total = total + term  # two values of fp32 or fp16 in float64: rounding twice is right, 53 >= 2 * 24 + 2
        round_into(total, total, accumulator.format, _NEAREST)
    return total


def warn_once(unit: str, row: str, verified: bool, message: str) -> None:
    """Warn, once in a process, that a row of a unit has been compared with no hardware."""
    if not verified and (unit, row) not in _warned:
        _warned.add((unit, row))
        warnings.warn(message, UnconfirmedUnit, stacklevel=3)
