"""What the roundings of one product of this run may have added, found by following its accumulation once more.

`fpsim.theory.running` makes every partial sum again and adds up what each rounding may have erred by. Stochastic draws cannot
be made again here: their partial sums are bounded around the exact ones (`partial_sums.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fpsim._product_jobs import Draws
from fpsim._product_plans import program
from fpsim._watched_runs import watched_products
from fpsim.accumulation.accumulator import Accumulator
from fpsim.emulation.certification.partial_sums import tree_errors
from fpsim.emulation.certification.table import Products
from fpsim.emulation.policy import Policy
from fpsim.rounding import Rounding
from fpsim.theory.powers import inflated
from fpsim.theory.roundings import holds
from fpsim.theory.running import (
    Sums,
    hidden_underflow,
    result_error,
    rounded_error,
    stored_error,
    unrounded_error,
)
from fpsim.theory.trees import leaves_of


def is_tree(accumulator: Accumulator) -> bool:
    """Whether the accumulator is one tree of rounded additions."""
    return accumulator.kind == "tree" and accumulator.promoted is None


def can_follow(policy: Policy, sums: Products) -> bool:
    if sums.matrices is None or sums.divisor != 1:
        return False
    return policy.rounding is not Rounding.STOCHASTIC or (is_tree(policy.accumulator) and not policy.accumulator.format.flush)


def follow(
    policy: Policy, sums: Products, result: torch.Tensor, squares: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bounds for each element of the emulated result: of its whole error (inf where it may have overflowed), of the part that
    is no independent rounding, and of the sum of squares of the others, each at most half an interval of its draw."""
    assert sums.matrices is not None
    pairs = sums.matrices(*(factor.value for factor in sums.factors))
    sizes = [left.shape[0] * right.shape[1] for left, right in pairs]
    addends: list[Any] = [None] * len(pairs)
    if sums.addend is not None:
        addends = list(sums.spread_addend(sums.addend.value).expand(result.shape).reshape(-1).split(sizes))
    function = _stochastic if policy.rounding is Rounding.STOCHASTIC else _again
    found = []
    for (left, right), own, addend in zip(pairs, result.reshape(-1).split(sizes), addends, strict=True):
        shape = (left.shape[0], right.shape[1])
        extra = None if addend is None else addend.reshape(shape).numpy()
        products = sums.factors[1].value.dim() > 0
        found.append(function(left, right, own.reshape(shape).numpy(), extra, policy, products, squares))
    whole = [torch.from_numpy(np.concatenate([part.reshape(-1) for part in parts])) for parts in zip(*found, strict=True)]
    total, fixed, squared = (part.reshape(result.shape) for part in whole)
    return total, fixed, squared


def _again(
    left: torch.Tensor, right: torch.Tensor, result: np.ndarray, addend: np.ndarray | None, policy: Policy, products: bool,
    squares: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    fmt, accumulator, rounding = policy.fmt, policy.accumulator, policy.rounding
    accumulator = accumulator if products else accumulator.for_sums
    a, b = (np.ascontiguousarray(item.float().numpy()) for item in (left, right))  # exact: values of the format
    sums = Sums(a, b, fmt, accumulator, rounding, Draws(0, 0, b.shape[1], 1), products)
    total = result_error(sums, result, addend)
    if not squares:
        return total, total, np.zeros_like(total)
    held = sums.held
    stored = stored_error(result, held, fmt, rounding)
    if not is_tree(accumulator) or accumulator.format.flush or a.shape[1] == 0:  # of these the last rounding only
        with np.errstate(invalid="ignore"):
            rest = np.where(np.isfinite(total), total - stored * (1 - 2.0**-40), np.inf)
        return total, rest, np.where(np.isfinite(stored), stored**2, 0.0)
    assert held is not None
    kept = _squares(sums) + stored**2
    if addend is not None:
        kept = kept + unrounded_error(result, held, fmt, rounding) ** 2
        kept = kept if holds(held, fmt) else kept + rounded_error(addend, held, rounding) ** 2
    certain = np.where(np.isfinite(total), _certain(sums), np.inf)
    return total, certain, inflated(np.where(np.isfinite(total), kept, 0.0), 8)


def _squares(sums: Sums) -> np.ndarray:
    """The sum of (u ufp)^2 over the roundings of a tree."""
    accumulator, held = sums.accumulator, sums.accumulator.format
    tree = accumulator.order(sums.terms)
    leaves = leaves_of(sums.fmt, held, accumulator.products == "rounded", sums.products)
    (part,) = watched_products(
        sums.a, sums.b, sums.fmt, held, sums.rounding, tree, accumulator.products != "rounded", leaves.exact, True, sums.draws,
        [program(tree)],
    )  # fmt: skip
    return inflated(part.kept.astype(np.float64) * (1 + 2 * part.excess) * held.unit_roundoff**2, 3 * sums.terms + 8)


def _certain(sums: Sums) -> float:
    """What no rounding of mean zero explains: products that underflow out of sight."""
    return (3 * sums.terms + 8) * hidden_underflow(sums, sums.accumulator.format)


def _stochastic(
    left: torch.Tensor, right: torch.Tensor, result: np.ndarray, addend: np.ndarray | None, policy: Policy, products: bool,
    squares: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    fmt, accumulator, rounding = policy.fmt, policy.accumulator, policy.rounding
    error, squared = tree_errors(left.numpy(), right.numpy(), fmt, accumulator, rounding, addend)
    stored = stored_error(result, accumulator.format, fmt, rounding)
    total = inflated(error + stored, 4)
    squared = inflated(squared + np.where(np.isfinite(stored), stored, 0.0) ** 2, 4)
    return total, np.where(np.isfinite(total), 0.0, np.inf), squared

