"""What a run of a step leaves behind, as float64 numbers, and how far one run is from another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from fpsim.arrays.encoding import ulp
from fpsim.numbers.formats import Format
from fpsim.report.advised import Deviation

Tensors = dict[str, torch.Tensor]


@dataclass
class Taken:
    """Of a run: what the step returned each time, the gradients of the first and the last step, the state before and after.

    Everything is float64; integers are left out.
    """

    results: list[list[torch.Tensor]] = field(default_factory=list)
    gradients: list[Tensors] = field(default_factory=list)
    start: Tensors = field(default_factory=dict)
    end: Tensors = field(default_factory=dict)


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in float64."""
    return tensor.detach().to(torch.float64, copy=True)


def floats_in(result: Any) -> list[torch.Tensor]:
    """The floating-point tensors and numbers that a step returned."""
    leaves = (torch.tensor(leaf) if isinstance(leaf, float) else leaf for leaf in tree_leaves(result))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def state_of(model: torch.nn.Module, number: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
    """Parameters and float buffers by name."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: number(tensor) for name, tensor in named if tensor.is_floating_point()}


def deviation(ours: Taken, exact: Taken, fmt: Format, trains: bool, groups: Iterable[Iterable[str]] = ()) -> Deviation:
    """How far a run is from the exact one, over what is finite there; infinite where it is not finite itself.

    The results of training count only beyond half of the smallest positive number, for what a loss is too small for is seen
    in its gradients. Of gradients and movements the worst of all together, and of those of each of the groups of names.
    """
    spare = fmt.min_subnormal / 2 if trains else 0.0
    results = _relative(_pairs_of_results(ours, exact), spare)
    gradients = movement = 0.0
    for chosen in filter(None, map(set, (exact.start, *groups))):
        gradients = max(gradients, _relative(_pairs_of_gradients(ours, exact, chosen)))
        movement = max(movement, _movement(ours, exact, fmt, chosen))
    return Deviation(results, gradients, movement)


def _pairs_of_results(ours: Taken, exact: Taken) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for mine, theirs in zip(ours.results, exact.results, strict=True):
        yield from zip(mine, theirs, strict=True)


def _pairs_of_gradients(ours: Taken, exact: Taken, names: set[str]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for mine, theirs in zip(ours.gradients, exact.gradients, strict=True):
        yield from ((mine[name], theirs[name]) for name in theirs if name in names and name in mine)


def _relative(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], spare: float = 0.0) -> float:
    """The 2-norm of the differences, each less what is spared, over that of the exact numbers."""
    squares = reference = 0.0
    for ours, exact in pairs:
        finite = exact.isfinite()
        if not bool(ours[finite].isfinite().all()):
            return math.inf
        squares += float((ours[finite] - exact[finite]).abs().sub(spare).clamp(min=0).square().sum())
        reference += float(exact[finite].square().sum())
    if not squares:
        return 0.0
    return math.sqrt(squares / reference) if reference else math.inf


def resolution(exact: Taken, fmt: Format, names: Iterable[str] = ()) -> float:
    """Half the format's spacing beside the exact movement of the state, or of those named; infinite where nothing moves."""
    chosen = [name for name in exact.end if name in set(names)] or list(exact.end)
    meant = [(exact.end[name] - exact.start[name], exact.end[name]) for name in chosen]
    length = sum(float(change.square().sum()) for change, _ in meant)
    rounding = 0.5 * sum(float((change.abs() * ulp(end, fmt)).sum()) for change, end in meant)
    return rounding / length if length else math.inf


def _movement(ours: Taken, exact: Taken, fmt: Format, names: set[str]) -> float:
    """How much of the exact movement of the state is missing or too much, less what rounding the end to the format can cost."""
    along = length = rounding = 0.0
    for name in (name for name in exact.end if name in names):
        meant = exact.end[name] - exact.start[name]
        finite = meant.isfinite()
        if not bool(ours.end[name][finite].isfinite().all()):
            return math.inf
        meant, moved = meant[finite], (ours.end[name] - ours.start[name])[finite]
        along += float((moved * meant).sum())
        length += float(meant.square().sum())
        rounding += 0.5 * float((meant.abs() * ulp(exact.end[name][finite], fmt)).sum())
    return max(0.0, abs(1 - along / length) - rounding / length) if length else 0.0
