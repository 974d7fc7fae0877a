"""The arithmetic of a machine, as one value that is exchanged where a machine has several."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from fpsim.emulation.machine import marks
from fpsim.emulation.machine.finishing import Finish
from fpsim.emulation.machine.policy import Policy
from fpsim.emulation.machine.tables import Tables
from fpsim.numbers.rounding import Rounding
from fpsim.numbers.system import NumberSystem
from fpsim.sums.task import Sum


@dataclass(frozen=True, eq=False, slots=True)
class Arithmetic:
    """How a machine computes; `dataclasses.replace` makes one that differs.

    fmt, rounding what results are rounded to, and how: `finishing` does it, `tables` where a table is faster
    task          a sum of values; product_task: of products of matrices and convolutions
    tag           the mark of memory that holds values of the format
    fast          whether float32 suffices for elementwise operations
    uniform       whether all that an operation reads and makes is of one format
    constants     constants rounded before; scalars: numbers made tensors before
    """

    policy: Policy
    fmt: NumberSystem
    rounding: Rounding
    task: Sum
    product_task: Sum
    tag: marks.Tag
    fast: bool
    stochastic: bool
    primitive: bool
    finishing: Finish
    tables: Tables
    uniform: bool = True
    constants: dict[float, float] = field(default_factory=dict)
    scalars: dict[float, torch.Tensor] = field(default_factory=dict)

    def marking(self, tag: marks.Tag) -> Arithmetic:
        """The same with another mark, as `dataclasses.replace` makes it in ten times the time."""
        values: list[Any] = [getattr(self, name) for name in Arithmetic.__match_args__]
        values[_TAG] = tag
        return Arithmetic(*values)

    @staticmethod
    def of(policy: Policy) -> Arithmetic:
        """The arithmetic of a policy with one format, with a mark of its own."""
        fmt, rounding = policy.fmt, policy.rounding
        finishing, task = Finish(fmt, rounding), Sum.of(fmt, policy.accumulator, rounding)
        return Arithmetic(
            policy=policy,
            fmt=fmt,
            rounding=rounding,
            task=task,
            product_task=task,
            tag=marks.Tag(fmt.name),
            fast=policy.carried_by_float32,
            stochastic=rounding is Rounding.STOCHASTIC,
            primitive=policy.granularity == "primitive",
            finishing=finishing,
            tables=Tables(finishing),
        )


_TAG = Arithmetic.__match_args__.index("tag")
