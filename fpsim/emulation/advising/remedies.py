"""The remedies, each a row of one table: what it answers, what it changes, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fpsim.emulation.advising import changes
from fpsim.emulation.advising.evidence import Evidence
from fpsim.emulation.advising.recipe import Recipe
from fpsim.emulation.advising.rewriting import finite_mask, scale_before_product

EVERYTHING = 9  # what it costs to give up the format


@dataclass(frozen=True)
class Remedy:
    """One kind of change.

    name     what it is called where it cannot be tried
    answers  whether a run's evidence calls for it
    changes  the recipe with it, by one or more strengths, each with a title; raises CannotTry with the reason
    cost     how much is given up: 1 next to nothing, `EVERYTHING` the format
    """

    name: str
    answers: Callable[[Evidence], Any]
    changes: Callable[[Evidence, Recipe], Iterable[changes.Change]]
    cost: int


#: What is tried where nothing else restores agreement.
LAST_RESORT = Remedy(
    "fp32 for everything", lambda e: not e.is_of_mask, partial(changes.everything_in, changes.wide), EVERYTHING + 1
)

#: In the order in which they are tried.
REMEDIES = (
    Remedy(
        "a loss scale", lambda e: e.vanishes or e.breaks_in("backward") or e.loses_small_gradients, changes.scaled_loss, 1,
    ),
    Remedy("a larger epsilon", lambda e: e.breaks_in("optimizer"), changes.larger_epsilon, 1),
    Remedy(
        "the scale before the product", lambda e: e.breaks_in("forward") and e.is_product,
        partial(changes.rewritten, scale_before_product, "the scale before the product"), 1,
    ),
    Remedy("a finite mask", lambda e: e.is_of_mask, partial(changes.rewritten, finite_mask, "a finite mask"), 1),
    Remedy("finite masks", lambda e: e.is_of_mask, changes.finite_masks, 1),
    Remedy("a blocked accumulator", lambda e: e.blames_sums, partial(changes.accumulated, "{}:blocked(64)", "blocked sums"), 2),
    Remedy(
        "a promoted accumulator", lambda e: e.blames_sums,
        partial(changes.accumulated, "{}:blocked(64)->fp32", "promoted sums"), 3,
    ),
    Remedy("a wider accumulator", lambda e: e.blames_sums, partial(changes.accumulated, "fp32", "wider sums"), 4),
    Remedy("compensated updates", lambda e: e.stalls, partial(changes.wrapped, "Kahan({})", "compensated updates (Kahan)"), 2),
    Remedy(
        "stochastic updates", lambda e: e.stalls, partial(changes.wrapped, "Stochastic({}, seed=0)", "stochastic updates"), 2,
    ),
    Remedy("a master copy", lambda e: e.stalls, partial(changes.wrapped, "MasterCopy({})", "a master copy of the weights"), 3),
    Remedy("clipped gradients", lambda e: e.breaks_in("backward", "optimizer"), changes.clipped_gradients, 3),
    Remedy(
        "the optimizer in fp32", lambda e: e.breaks_in("optimizer") or e.vanishes or e.is_vague,
        partial(changes.roles, "the optimizer in fp32", ("optimizer",)), 3,
    ),
    Remedy(
        "weights and optimizer in fp32", lambda e: e.breaks_in("optimizer") or e.stalls or e.vanishes or e.is_vague,
        partial(changes.roles, "weights and optimizer in fp32", ("weight", "optimizer")), 4,
    ),
    Remedy(
        "gradients in fp32", lambda e: e.vanishes or e.phase == "backward" or e.loses_small_gradients,
        partial(changes.roles, "gradients in fp32", ("gradient", "optimizer")), 5,
    ),
    Remedy("fp32 for the blamed module", lambda e: e.phase != "optimizer", partial(changes.module_in, changes.wide), 5),
    Remedy("fp32 for normalization layers", lambda e: e.norms and (e.path in e.norms or e.is_vague), changes.norms_wide, 5),
    Remedy("fp32 for the last layer", lambda e: e.last and e.path is None and e.phase != "optimizer", changes.last_wide, 5),
    Remedy(
        "another format for the blamed module", lambda e: e.phase != "optimizer",
        partial(changes.module_in, changes.siblings), 6,
    ),
    Remedy("clipped inputs", lambda e: e.kind == "overflow" and e.phase == "forward", changes.bounded_inputs, 6),
    Remedy("fp32 from the blamed module on", lambda e: e.breaks_in("forward"), changes.from_here_on, 7),
    Remedy(
        "another format for everything", lambda e: not e.is_of_mask,
        partial(changes.everything_in, changes.siblings), EVERYTHING,
    ),
    replace(LAST_RESORT, answers=lambda e: e.is_whole and not e.is_of_mask),
)  # fmt: skip
