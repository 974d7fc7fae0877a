"""Sums of two matrices, rounded: the additions beside and after a tree's own."""

from __future__ import annotations

import numpy as np

from fpsim.backend.numba.products import fill_hashes, make_add
from fpsim.numbers.computing import float32_adds, is_float32, is_float64
from fpsim.numbers.formats import Format
from fpsim.numbers.operations import odd_sum
from fpsim.numbers.rounding import Rounding, round_into
from fpsim.numbers.system import NumberSystem
from fpsim.sums.schemes import careful_scheme
from fpsim.sums.task import Draws


def add_rounded(
    x: np.ndarray, y: np.ndarray, target: NumberSystem, rounding: Rounding, draws: Draws, node: int, residual: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """rounded(x + y) of two matrices, as node number `node`: values of `target`, or any float64 with `residual`.

    y may broadcast to x. `out`, x itself if its elements are of no further use, may receive the result: fresh memory costs
    more than the sums.
    """
    if not isinstance(target, Format):
        total = odd_sum(x, y, rounding)
        round_rows(total, target, rounding, draws)
        return total
    rows, columns = x.shape
    if is_float64(target):  # computed to nearest even only, with one rounding of float64's own
        with np.errstate(all="ignore"):
            return np.add(x, y, dtype=np.float64)
    if is_float32(target) and rounding is Rounding.NEAREST_EVEN and not residual:
        with np.errstate(all="ignore"):
            return np.add(x, y, out=out, dtype=np.float32, casting="same_kind")  # both are float32 values, added as IEEE says
    if x.dtype == np.float32 and rounding is Rounding.NEAREST_EVEN and not residual and float32_adds(target):
        out = out if out is not None and out.flags.c_contiguous else None  # what is not, rounding would copy
        with np.errstate(all="ignore"):
            total = np.add(x, y, out=out, dtype=np.float32, casting="same_kind", order="C")
        round_into(total, total, target, rounding)
        return total
    careful = careful_scheme(target, rounding, residual)
    padded = -(-max(1, columns) // 8) * 8
    out = np.zeros((rows, padded))
    right = np.zeros((rows, padded))
    out[:, :columns], right[:, :columns] = x, y
    hashes = np.zeros((rows, padded), dtype=np.uint32)
    if rounding is Rounding.STOCHASTIC:
        fill_hashes(hashes, np.uint64(draws.key), draws.first, draws.row_step, draws.column_step)
    function = make_add(rounding.code, careful.flags)
    function(out.reshape(-1), right.reshape(-1), careful.row, hashes.reshape(-1), node)
    return out[:, :columns]


def round_rows(x: np.ndarray, system: NumberSystem, rounding: Rounding, draws: Draws) -> None:
    """Round a contiguous matrix in place, drawing for the elements as `draws` numbers them."""
    if rounding is not Rounding.STOCHASTIC or draws.row_step == x.shape[1]:
        round_into(x, x, system, rounding, draws.key, draws.first)
        return
    for i, row in enumerate(x):
        round_into(row, row, system, rounding, draws.key, draws.at(i).first)
