"""What the roundings of one product of this run may have added, found by following its accumulation once more.

`fpsim.running.products` makes every partial sum again and adds up what each rounding may have erred by. Stochastic draws cannot
be made again here: their partial sums are bounded around the exact ones (`partial_sums.py`).
"""

from __future__ import annotations

import numpy as np
import torch

from fpsim.accumulation.accumulator import Accumulator
from fpsim.accumulation.kinds import TREE
from fpsim.emulation.certification.partial_sums import tree_errors
from fpsim.emulation.certification.table import Products
from fpsim.emulation.machine.policy import Policy
from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding
from fpsim.running.products import Summed, hidden_underflow, result_error, tree_stages
from fpsim.running.roundings import rounded_error, stored_error, unrounded_error
from fpsim.sums.observers.error_sums import Kept, error_sums
from fpsim.sums.task import Sum
from fpsim.theory.powers import inflated
from fpsim.theory.roundings import holds, unit
from fpsim.theory.trees import leaves_of


def _is_one_tree(accumulator: Accumulator) -> bool:
    """Whether the accumulator is one tree of rounded additions, which flush nothing."""
    return accumulator.kind is TREE and not accumulator.format.flush


def can_follow(policy: Policy, sums: Products) -> bool:
    if sums.matrices is None or sums.divisor != 1:
        return False
    return policy.rounding is not Rounding.STOCHASTIC or _is_one_tree(policy.accumulator)


def follow_tree(policy: Policy, sums: Products) -> tuple[torch.Tensor, float, float] | None:
    """(kept, factor, constant): a bound factor * kept + constant on what accumulating added, kept for each element.

    None where the accumulator is more than one tree, or draws.
    """
    if policy.rounding is Rounding.STOCHASTIC or not _is_one_tree(policy.accumulator):
        return None
    left, right = _matrices(sums)
    products = sums.factors[1].value.dim() > 0
    accumulator = policy.accumulator if products else policy.accumulator.for_sums
    summed = Summed(Sum.of(policy.fmt, accumulator, policy.rounding), left.numpy(), right.numpy(), products=products)
    (stage,), count, certain = tree_stages(summed)
    growth = 1 + (count + 16) * 2.0**-52
    factor = stage.factor * float(unit(stage.fmt, policy.rounding)) * growth
    return torch.from_numpy(np.ascontiguousarray(stage.kept)), factor, certain


def _matrices(sums: Products) -> tuple[torch.Tensor, torch.Tensor]:
    assert sums.matrices is not None
    return sums.matrices(*(factor.value.float() for factor in sums.factors))  # exact: values of the format


def follow(
    policy: Policy, sums: Products, result: torch.Tensor, squares: bool, stored: Format | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bounds for each element of the emulated result: of its whole error (inf where it may have overflowed), of the part that
    is no independent rounding, and of the sum of squares of the others, each at most half an interval of its draw.

    The result is rounded to `stored`; left out, to the policy's format."""
    left, right = _matrices(sums)
    shape = (*left.shape[:-1], right.shape[-1])
    addend = None
    if sums.addend is not None:
        addend = sums.spread_addend(sums.addend.value).expand(result.shape).reshape(shape).numpy()
    function = _stochastic if policy.rounding is Rounding.STOCHASTIC else _again
    products = sums.factors[1].value.dim() > 0
    operands = (left.numpy(), right.numpy(), result.reshape(shape).numpy(), addend)
    parts = function(*operands, policy, products, squares, policy.fmt if stored is None else stored)
    total, fixed, squared = (torch.from_numpy(np.ascontiguousarray(part)).reshape(result.shape) for part in parts)
    return total, fixed, squared


def _again(
    a: np.ndarray, b: np.ndarray, result: np.ndarray, addend: np.ndarray | None, policy: Policy, products: bool,
    squares: bool, target: Format,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    fmt, accumulator, rounding = policy.fmt, policy.accumulator, policy.rounding
    accumulator = accumulator if products else accumulator.for_sums
    sums = Summed(Sum.of(fmt, accumulator, rounding), a, b, products=products)
    total = result_error(sums, result, addend, target)
    if not squares:
        return total, total, total
    held = sums.held
    stored = stored_error(result, held, target, rounding)
    if not _is_one_tree(accumulator) or sums.terms == 0:  # of these the last rounding only
        with np.errstate(invalid="ignore"):
            rest = np.where(np.isfinite(total), total - stored * (1 - 2.0**-40), np.inf)
        return total, rest, np.where(np.isfinite(stored), stored**2, 0.0)
    assert held is not None
    kept = _squares(sums) + stored**2
    if addend is not None:
        kept = kept + unrounded_error(result, held, target, rounding) ** 2
        kept = kept if holds(held, fmt) else kept + rounded_error(addend, held, rounding) ** 2
    certain = np.where(np.isfinite(total), _certain(sums), np.inf)
    return total, certain, inflated(np.where(np.isfinite(total), kept, 0.0), 8)


def _squares(sums: Summed) -> np.ndarray:
    """The sum of (u ufp)^2 over the roundings of a tree."""
    task = sums.task
    leaves = leaves_of(task.operand, task.target, not task.exact_products, sums.products)
    kept = np.empty(sums.shape)
    for place in np.ndindex(sums.shape[:-2]):
        (part,) = error_sums(task, sums.a[place], sums.b[place], sums.draws, Kept(True, leaves.exact))
        kept[place] = part.kept.astype(np.float64) * (1 + 2 * part.excess)
    return inflated(kept * task.target.unit_roundoff**2, 3 * sums.terms + 8)


def _certain(sums: Summed) -> float:
    """What no rounding of mean zero explains: products that underflow out of sight."""
    return (3 * sums.terms + 8) * hidden_underflow(sums, sums.task.target)


def _stochastic(
    a: np.ndarray, b: np.ndarray, result: np.ndarray, addend: np.ndarray | None, policy: Policy, products: bool,
    squares: bool, target: Format,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    fmt, accumulator, rounding = policy.fmt, policy.accumulator, policy.rounding
    error, squared = np.empty(result.shape), np.empty(result.shape)
    for place in np.ndindex(result.shape[:-2]):
        term = None if addend is None else addend[place]
        left, right = a[place].astype(np.float64), b[place].astype(np.float64)
        error[place], squared[place] = tree_errors(left, right, fmt, accumulator, rounding, term)
    stored = stored_error(result, accumulator.format, target, rounding)
    total = inflated(error + stored, 4)
    squared = inflated(squared + np.where(np.isfinite(stored), stored, 0.0) ** 2, 4)
    return total, np.where(np.isfinite(total), 0.0, np.inf), squared
