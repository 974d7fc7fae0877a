"""`compare`: one model on the same batches in several arithmetics."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fpsim.emulation.compared_apart import Outcome, run_apart
from fpsim.emulation.compared_run import Work
from fpsim.report.comparison import Comparison
from fpsim.report.runs import Run


def compare(
    model: nn.Module,
    data: Iterable[Any],
    policies: Sequence[Any],
    loss: Callable[..., Any],
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    seed: int = 0,
    observe: Sequence[str] = ("range", "events", "coverage"),
    processes: int = 1,
    folder: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Run the model through the same batches in each arithmetic, from the same state and random numbers.

    Parameters
    ----------
    model : left as it is; each arithmetic has a copy.
    data : batches; a tuple or list is spread out, `loss(model, *batch)`.
    policies : each a format, "fp16" or "fp16/fp16" with the accumulator after the slash, or a mapping of `run`'s arguments.
        The others are compared with the first.
    loss : a scalar tensor from the simulated model and a batch, or (scalar tensor, outputs): then agreement is the share
        of outputs whose largest entry along the last axis is the first arithmetic's.
    optimizer : makes an optimizer of parameters; without one, nothing is trained.
    seed : of torch's generator, set before each run and left as it was afterwards.
    observe : the names of what is observed, but where the arithmetic is torch itself; "shadow" adds the error of each layer.
    processes : how many arithmetics run at a time; above 1, each in a process of its own, with the same results.
    folder : where finished runs are kept. They are not made again while all arguments and the files that define the model,
        the loss and the optimizer are the same. Each arithmetic then has a process of its own.

    An exception in the middle of a run ends that run and is its report's `ending`; Ctrl-C ends all, and what was finished
    is returned. Raises ValueError without policies, what `run` raises for an arithmetic before anything has run, TypeError
    for what cannot be handed to another process, and RuntimeError with what a process said that left no report.
    """
    if isinstance(policies, (str, Mapping)):
        raise TypeError(f"compare takes a list of arithmetics, not {policies!r}: [{policies!r}], with others beside it")
    if not policies:
        raise ValueError("compare takes at least one arithmetic, such as 'fp32'")
    if processes < 1:
        raise ValueError(f"compare takes at least one process, got {processes}")
    batches = [tuple(batch) if isinstance(batch, (tuple, list)) else (batch,) for batch in data]
    work = Work(model, batches, loss, optimizer, seed, tuple(observe))
    named = [named_policy(policy) for policy in policies]
    simulations = [work.simulation(settings) for _, settings in named]
    if processes > 1 or folder is not None:
        del simulations  # what makes no sense was refused
        return Comparison(tuple(_with_agreement(run_apart(work, named, processes, folder))))
    outcomes: list[Outcome] = []
    for (name, _), simulation in zip(named, simulations, strict=True):
        steps = work.steps(simulation)
        outcomes.append((Run(name, steps.report(), seconds=steps.seconds), steps.predictions))
        if steps.is_interrupted:
            break
    return Comparison(tuple(_with_agreement(outcomes)))


def _with_agreement(outcomes: list[Outcome]) -> Iterator[Run]:
    """The runs; the others' predictions are compared with the first one's."""
    for number, (run_, predictions) in enumerate(outcomes):
        pairs = zip(predictions, outcomes[0][1], strict=False) if number else ()
        yield replace(run_, agreement=tuple(float((ours == theirs).double().mean()) for ours, theirs in pairs))


def named_policy(policy: Any) -> tuple[str, dict[str, Any]]:
    """A name and `run`'s arguments: of "fp16/fp16", of a mapping with "fmt" in it, or of a format."""
    if isinstance(policy, Mapping) and "fmt" in policy:
        return ", ".join(f"{key}={value}" for key, value in policy.items()), dict(policy)
    if isinstance(policy, str):
        fmt, _, accumulate = policy.strip().partition("/")
        return policy.strip(), {"fmt": fmt, **({"accumulate": accumulate} if accumulate else {})}
    return str(policy), {"fmt": policy}
