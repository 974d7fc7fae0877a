"""The arithmetic of one operation of a machine that has several settings."""

from __future__ import annotations

from dataclasses import replace

from fpsim.emulation.machine.arithmetic import Arithmetic
from fpsim.emulation.machine.marks import Tag
from fpsim.emulation.machine.policy import MixedPolicy, mixed_products, widened
from fpsim.emulation.machine.selection import Selection
from fpsim.emulation.machine.systems import SystemFinish
from fpsim.emulation.machine.tables import Tables
from fpsim.numbers.formats import Format, joined
from fpsim.numbers.splits import Split, in_mode
from fpsim.sums.task import Sum


def arithmetic_of(selection: Selection, policies: MixedPolicy, tag: Tag) -> Arithmetic:
    """How a machine computes what was selected; `tag` marks the memory of the results."""
    module, formats = selection.module, selection.module.formats
    read = [selection.read, selection.read_gradient, selection.result]
    if None in read:
        read = [formats.weight, formats.activation, formats.gradient, formats.optimizer, selection.result]
    accumulator = getattr(module.accumulators, selection.by)
    policy = policies.of(selection.result, accumulator, selection.rounding)
    arithmetic = replace(Arithmetic.of(policy), tag=tag)
    operands = selection.result
    if not isinstance(selection.result, Format):
        finishing = SystemFinish(selection.result, selection.rounding)
        arithmetic = replace(arithmetic, fmt=selection.result, finishing=finishing, tables=Tables(finishing), fast=False)
    if len(set(read)) > 1:
        operands = joined(*(fmt.enclosing for fmt in read if fmt is not None))
        policy = mixed_products(policy, operands)
        # what float32 makes of wider operands would be rounded twice
        arithmetic = replace(arithmetic, policy=policy, fast=False, uniform=False)
    arithmetic = replace(arithmetic, task=Sum.of(operands, policy.accumulator, selection.rounding, selection.result))
    factors = formats.product or operands
    multiplying = widened(module.accumulators.product or accumulator, factors)
    if isinstance(factors, Split):
        split = in_mode(factors, module.roundings.product)
        product_task = Sum.of(operands, multiplying, selection.rounding, selection.result, split=split)
    else:
        product_task = Sum.of(factors, multiplying, selection.rounding, selection.result)
    if policies.draws:  # the ways of stochastic rounding, which take a key for each
        arithmetic = replace(arithmetic, stochastic=True, fast=False)
    return replace(arithmetic, product_task=product_task)
