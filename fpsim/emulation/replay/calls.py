"""One recorded call of torch, computed again by a machine of a policy."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import torch

from fpsim.emulation.dispatch.context import Emulation
from fpsim.emulation.machine.policy import NativePolicy, Policy, make_policy
from fpsim.emulation.registry import TABLE
from fpsim.emulation.replay.conversions import converted
from fpsim.emulation.replay.guard import REFUSALS, NotReplayed, check_call, first_line
from fpsim.emulation.replay.tensors import DTYPES, arguments_of, numbers_in, operands_and_results, results_of, tensor_of
from fpsim.recorder.bundle import Bundle

HALVES = ("float16", "bfloat16")
_CONVERSIONS = ("aten._to_copy.default", "aten.copy_.default")


class Call:
    """A record of the kind "call"; what asks for its arguments takes for granted that there is no `refusal`."""

    def __init__(self, bundle: Bundle, record: dict[str, Any]):
        self.bundle, self.record = bundle, record
        self.name: str = record["op"]
        has_results = "skipped" not in record
        operands, self.recorded = operands_and_results(record) if has_results else ([], [])
        self.dtypes = [bundle.tensors[number][0] for number in operands]

    @cached_property
    def refusal(self) -> str | None:
        """Why this cannot be computed again, found without computing anything; None where it can be tried."""
        if "skipped" in self.record:
            return str(self.record["skipped"])
        try:
            check_call(self.op, self.bundle, self.record)
        except NotReplayed as reason:
            return str(reason)
        return None

    @property
    def op(self) -> torch._ops.OpOverload:
        """The operation. Raises NotReplayed for one that has no rule: nothing else in a bundle is ever called."""
        op = _operations().get(self.name)
        if op is None:
            raise NotReplayed("no rule for it")
        return op

    @property
    def family(self) -> str:
        """The family of its rule, "conversion", or "unsupported"."""
        if self.name in _CONVERSIONS:
            return "conversion"
        op = _operations().get(self.name)
        return "unsupported" if op is None else TABLE[op].family

    @property
    def dtype(self) -> str:
        """The narrowest floating-point dtype among operands and results."""
        names = [*self.dtypes, *(self.bundle.tensors[number][0] for number in self.recorded)]
        order = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", *HALVES, "float32", "float64")
        return next((name for name in order if name in names), "float32")

    @property
    def _factors(self) -> list[tuple[int, ...]]:
        """The shapes of the factors of a matrix product; none of other calls."""
        first = {"mm": 0, "bmm": 0, "dot": 0, "mv": 0, "addmm": 1, "baddbmm": 1}.get(self.name.split(".")[1])
        shapes = [self.bundle.tensors[number][1] for number in numbers_in(self.record["args"])]
        return [] if first is None else shapes[first : first + 2]

    @property
    def terms(self) -> int | None:
        """How many products each element of a matrix product sums; None for other calls."""
        return self._factors[0][-1] if self._factors else None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """(m, k, n) of a product of two matrices; m or n is 1 for a vector."""
        if not self._factors or "bmm" in self.name:
            return None
        left, right = self._factors
        return left[0] if len(left) == 2 else 1, left[-1], right[-1] if len(right) == 2 else 1

    @property
    def kind(self) -> str:
        """What a call has in common with others beside its dtype: "m x k x n" of a product, the source of a conversion."""
        if self.family == "conversion":
            return f"from {self.dtypes[-1]}"
        return "" if self.shape is None else " x ".join(map(str, self.shape))

    def policy(self, accumulate: Any = None, granularity: str = "kernel") -> Policy:
        """The policy that the call's dtypes mean: each half for itself, and float32 as fp32 in emulation.

        Raises ValueError for an accumulator that does not take the format.
        """
        if set(self.dtypes) & set(HALVES) or self.dtype in HALVES:
            policy = make_policy("native", accumulate, granularity=granularity)
            assert isinstance(policy, NativePolicy)
            of_dtype = policy.of(self.dtype if self.dtype in HALVES else "float16")
            if isinstance(of_dtype, str):
                raise ValueError(of_dtype)
            return policy
        return make_policy("fp32", accumulate, granularity=granularity)

    def results(self) -> list[torch.Tensor]:
        """What the other machine gave."""
        return [tensor_of(self.bundle, number) for number in self.recorded]

    def replay(self, policy: Policy) -> list[torch.Tensor]:
        """What emulation gives, in the same order. Raises NotReplayed, saying why."""
        if self.refusal is not None:
            raise NotReplayed(self.refusal)
        bundle, record = self.bundle, self.record
        args, kwargs = arguments_of(bundle, record)
        try:
            emulated = self._converted(args, kwargs) if self.family == "conversion" else self._emulated(policy, args, kwargs)
        except REFUSALS as error:
            raise NotReplayed(first_line(error)) from None
        for number, result in zip(self.recorded, emulated, strict=False):
            dtype, shape, *_ = bundle.tensors[number]
            kind = DTYPES[dtype]
            both_float = kind.is_floating_point and result.is_floating_point()
            if tuple(result.shape) != shape or (kind is not result.dtype and not both_float):
                raise NotReplayed(f"a result was {dtype} {list(shape)} there and is {_described(result)} here")
        if len(emulated) != len(self.recorded):
            raise NotReplayed(f"it had {len(self.recorded)} results there and has {len(emulated)} here")
        return emulated

    def _converted(self, args: list[Any], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        source = args[1].expand(args[0].shape) if self.name.startswith("aten.copy_") else args[0]
        return [converted(source, kwargs.get("dtype") or args[0].dtype)]

    def _emulated(self, policy: Policy, args: list[Any], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        with Emulation(policy), torch.no_grad():
            result = self.op(*args, **kwargs)
        return results_of(self.record, result, args, kwargs)


def written_flags(record: dict[str, Any]) -> str:
    """The flags of a record as text, in one order."""
    return repr(sorted(record.get("flags", {}).items()))


def _described(x: torch.Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"


@lru_cache(maxsize=1)
def _operations() -> dict[str, torch._ops.OpOverload]:
    return {str(op): op for op in TABLE if op.namespace == "aten"}
