"""A block in which all that a thread does is emulated."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from fpsim.emulation.dispatch.context import Emulation
from fpsim.emulation.dispatch.hooks import Guard, guard_outputs, install_optimizer_hooks
from fpsim.emulation.machine.policy import make_policy
from fpsim.emulation.observers.observer import get_observers


@contextlib.contextmanager
def emulate(
    fmt: Any = "fp16",
    accumulate: Any = None,
    rounding: Any = "nearest-even",
    seed: int | None = None,
    granularity: str = "kernel",
    observe: Any = None,
    on_nonfinite: str | None = None,
    all_reduce: str = "rank-order",
) -> Iterator[Emulation]:
    """Emulate everything that this thread does with torch inside the block; arguments as for `run`.

    A backward pass through what is computed inside belongs inside as well; outside it raises `OutsideContext`.

    Tensors from outside are rounded, out of place, whenever they are used. Yields the `Emulation`, whose
    `rows()` are its counters. Raises what `run` raises for its arguments, and RuntimeError inside another emulation
    with a different policy.
    """
    install_optimizer_hooks()
    policy = make_policy(fmt, accumulate, rounding, seed, granularity, all_reduce)
    emulation = Emulation(policy, policy.resolve())
    emulation.observe(get_observers(observe, on_nonfinite))
    emulation.guard = Guard(emulation, keep=True)
    emulation.guard_outputs = functools.partial(guard_outputs, guard=emulation.guard)
    with emulation:
        yield emulation
