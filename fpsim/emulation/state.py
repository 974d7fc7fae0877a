"""The parameters and buffers of a model: which of them a policy can have, and their rounding."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from fpsim.emulation.dispatch.subclasses import refuse_to_hold
from fpsim.emulation.errors import UnsupportedTensor
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.limits import SMALL, round_as_told
from fpsim.emulation.machine.policy import NativePolicy, Policy
from fpsim.emulation.observers.conversion import Conversion, conversion_of
from fpsim.numbers.rounding import Rounding, draw_key
from fpsim.numbers.system import NumberSystem

_Named = tuple[str, torch.Tensor]


def held_by(modules: Iterable[tuple[str, nn.Module]]) -> tuple[dict[int, _Named], dict[int, _Named]]:
    """The parameters and the buffers of modules with their names, each tensor once, in the order in which torch has them."""
    parameters: dict[int, _Named] = {}
    buffers: dict[int, _Named] = {}
    for path, module in modules:
        prefix = f"{path}." if path else ""
        for by_identity, members in ((parameters, module._parameters), (buffers, module._buffers)):
            for name, tensor in members.items():
                if tensor is not None:
                    by_identity.setdefault(id(tensor), (prefix + name, tensor))
    return parameters, buffers


def check_state(model: nn.Module, policy: Policy) -> None:
    """Raise what `run` raises for tensors that the policy cannot have."""
    check_tensors((named for by_identity in held_by(model.named_modules()) for named in by_identity.values()), policy)


def check_tensors(named: Iterable[_Named], policy: Policy) -> None:
    dtypes: dict[torch.dtype, str] = {}
    for name, tensor in named:
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"{name} is not initialized yet; run a batch through the model first")
        if policy.is_identity:  # torch itself, which takes whatever it takes
            continue
        if tensor.device.type != "cpu":
            raise UnsupportedTensor(f"{name} is on {tensor.device}; emulation runs on the CPU: move the model there first")
        refuse_to_hold(name, tensor)
        if isinstance(tensor, nn.Parameter) and tensor.layout is not torch.strided:
            raise UnsupportedTensor(
                f"{name} is a parameter of layout {tensor.layout}; make its values a parameter, and the matrix in forward()"
            )
        if tensor.dtype is torch.complex32 and not isinstance(policy, NativePolicy):
            raise UnsupportedTensor(f'{name} is {tensor.dtype}, which means itself under fmt="native" alone; use complex64')
        if tensor.is_floating_point() and tensor.dtype not in (*SMALL, torch.float32, torch.float64):
            raise UnsupportedTensor(f"{name} is {tensor.dtype}, which has no arithmetic; use model.float() first")
        if tensor.dtype in (torch.float64, torch.complex128) and not isinstance(policy, NativePolicy):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{name} is {kind}, which means itself: nothing of it would be emulated; use model.float() first")
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            dtypes.setdefault(tensor.dtype, name)
    if dtypes and torch.float32 not in dtypes and not isinstance(policy, NativePolicy) and not policy.is_identity:
        dtype, name = next(iter(dtypes.items()))
        raise UnsupportedTensor(
            f"{name} is {dtype}, which means itself, and no parameter is float32: under fmt={policy.fmt.name!r} float32 "
            f'tensors hold {policy.fmt.name} values; use model.float() first, or fmt="native"'
        )


def round_state(
    formats: Iterable[tuple[torch.Tensor, NumberSystem, Rounding, marks.Tag]], seed: int | None,
    names: dict[int, tuple[str, str]],
) -> list[Conversion]:  # fmt: skip
    """Round parameters and float buffers in place, as `FormatMachine.formats_of` says; what is a value already stays as it is.

    names : by identity, of which it is told what they lost, their own and those of their modules
    """
    conversions = []
    for index, (tensor, fmt, rounding, tag) in enumerate(formats):
        if tensor.dtype not in (torch.float32, torch.complex64) or tensor.device.type != "cpu":
            continue
        data = marks.stored(tensor.detach())
        data = torch.view_as_real(data) if data.is_complex() else data
        marks.judge(data)
        key = draw_key(seed, -1 - index) if seed is not None else 0
        before = data.clone() if id(tensor) in names else None
        if data.is_contiguous():
            round_as_told(marks.array_of(data), fmt, rounding, key)
        else:
            array = data.contiguous().numpy()
            round_as_told(array, fmt, rounding, key)
            data.copy_(torch.from_numpy(array))
        if marks.covers_storage(data):
            marks.claim(data, tag)
        conversion = None if before is None else conversion_of(*names[id(tensor)], before, data, fmt)
        if conversion is not None:
            conversions.append(conversion)
    return conversions
