"""A model's own operations, recorded elsewhere, against the machine that a `Simulation` is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fpsim.emulation.machine.policy import MixedPolicy, NativePolicy, Policy, make_policy
from fpsim.emulation.replay.calls import Call, NotReplayed
from fpsim.emulation.replay.differences import Difference, compare
from fpsim.recorder.bundle import Bundle, load
from fpsim.recorder.records import check_records

#: Called before each operation with how many are done, how many there are, and its name.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class CheckedOperation:
    """One recorded operation: its number, its name, the module that made it, and how its results compare.

    differences  one for each result, None where all its bits are equal
    skipped      why it was not computed again; None where it was
    """

    number: int
    op: str
    place: str
    differences: tuple[Difference | None, ...]
    skipped: str | None

    @property
    def equal(self) -> bool | None:
        """Whether all results have equal bits; None where nothing was compared."""
        return None if self.skipped is not None else not any(self.differences)


@dataclass(frozen=True)
class ModelCheck:
    """Every recorded operation of a model, each computed again from its *recorded* operands.

    An early difference therefore does not spoil what follows, and each operation is judged by itself.
    """

    policy: Policy
    environment: dict[str, Any]
    stopped: str | None
    steps: tuple[CheckedOperation, ...]

    @property
    def first(self) -> CheckedOperation | None:
        """The first operation whose bits differ; None where there is none."""
        return next((step for step in self.steps if step.equal is False), None)

    @property
    def equal(self) -> bool:
        """Whether every operation was compared and has equal bits."""
        return self.stopped is None and bool(self.steps) and all(step.equal for step in self.steps)

    def __str__(self) -> str:
        compared = [step for step in self.steps if step.equal is not None]
        differing = [step for step in compared if not step.equal]
        lines = [f"{len(compared)} of {len(self.steps)} operations compared under {self.policy}"]
        if self.first is None:
            lines.append("no operation differs" if compared else "nothing was compared")
        else:
            lines.append(f"{len(differing)} differ; the first is number {self.first.number}, {describe(self.first)}")
        for reason in dict.fromkeys(step.skipped for step in self.steps if step.skipped is not None):
            ops = dict.fromkeys(step.op for step in self.steps if step.skipped == reason)
            lines.append(f"not compared ({reason}): {', '.join(ops)}")
        if self.stopped is not None:
            lines.append(f"the recording stopped {self.stopped}")
        return "\n".join(lines)


def describe(step: CheckedOperation) -> str:
    """An operation with its place and its first difference."""
    place = f" in {step.place}" if step.place else ""
    first_difference = next(((i, item) for i, item in enumerate(step.differences) if item is not None), None)
    if first_difference is None:
        return f"{step.op}{place}"
    result = f" of result {first_difference[0]}" if len(step.differences) > 1 else ""
    return f"{step.op}{place}: {first_difference[1].count} elements{result} differ, first {first_difference[1]}"


def crosscheck_model(
    bundle: Bundle | str | os.PathLike[str], policy: Policy, progress: Progress = lambda done, total, name: None
) -> ModelCheck:
    """Compute every recorded operation again under a policy.

    A policy of fp16 or bf16 stands for 16-bit tensors of that dtype in the bundle (`model.half()`), as fmt="native" does; what
    a recorded model computes in float32 beside them is then this machine's own torch, as it is under fmt="native".
    Raises BundleError for a file that is none, ValueError for a bundle whose dtypes the policy does not mean.
    """
    if isinstance(policy, MixedPolicy):
        raise ValueError(f"what was recorded says nothing of roles: crosscheck takes one setting for all, not {policy}")
    read = bundle if isinstance(bundle, Bundle) else load(bundle)
    check_records(read)
    calls = [Call(read, record) for record in read.records if record["kind"] == "call"]
    _require_dtypes(policy, calls)
    chosen = policy
    if not isinstance(policy, NativePolicy) and policy.fmt.name != "fp32":
        chosen = make_policy("native", policy.accumulator, policy.rounding, policy.seed, policy.granularity)
    steps = []
    for number, call in enumerate(calls):
        progress(number, len(calls), f"model: {call.name}")
        steps.append(_step(number, call, chosen))
    return ModelCheck(policy, read.environment, read.stopped, tuple(steps))


def _require_dtypes(policy: Policy, calls: list[Call]) -> None:
    if isinstance(policy, NativePolicy):
        return
    wanted = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}.get(policy.fmt.name)
    dtypes = {call.dtype for call in calls if call.refusal is None}
    if wanted is None or (dtypes and wanted not in dtypes):
        raise ValueError(
            f"the bundle holds {', '.join(sorted(dtypes)) or 'no operations'}, and this simulation is fmt={policy.fmt.name!r}: "
            "record model.half() or model.bfloat16() for fp16 or bf16, the float32 model for fp32"
        )


def _step(number: int, call: Call, policy: Policy) -> CheckedOperation:
    place = call.record.get("place", "")
    try:
        emulated = call.replay(policy)
    except NotReplayed as reason:
        return CheckedOperation(number, call.name, place, (), str(reason))
    differences = tuple(compare(left, right) for left, right in zip(call.results(), emulated, strict=True))
    return CheckedOperation(number, call.name, place, differences, None)
