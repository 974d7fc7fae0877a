"""One model tried: a step in plain torch, then under emulation, and what must hold of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

import fpsim
from experiments.zoo.entries import Entry, entry_of, loss_of, tensors_of

#: Arithmetics whose results must be values of a format: name, format, accumulator.
NARROW = {"fp16": ("fp16", "fp16"), "bf16": ("bf16", "bf16"), "fp16/fp32": ("fp16", "fp32")}


class Stepped:
    """A model after a step: what it gave, and what the step cost."""

    def __init__(self, entry: Entry, run: Callable[[torch.nn.Module], Any] | None = None, steps: int = 1):
        torch.manual_seed(0)
        model = entry.build().train()
        torch.manual_seed(1)
        args, kwargs = entry.inputs(model)
        called = model if run is None else run(model)
        context: AbstractContextManager[Any] = nullcontext() if run is None else called
        parameters = [item for item in called.parameters() if item.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.01)
        self.seconds = float("inf")
        with context:
            for _ in range(steps):
                torch.manual_seed(2)
                begun = time.process_time()
                optimizer.zero_grad()
                result = called(*args, **kwargs)
                loss = loss_of(result)
                loss.backward()
                optimizer.step()
                self.seconds = min(self.seconds, time.process_time() - begun)
            gradients = [item.grad for item in parameters if item.grad is not None]
            kept = (*tensors_of(result), loss, *gradients, *parameters)
            self.tensors = [item.detach().clone() for item in kept if item.layout is torch.strided]
        self.parameters = sum(item.numel() for item in parameters)
        self.is_finite = all(bool(item.isfinite().all()) for item in self.tensors)

    def digest(self) -> str:
        """Of the bits of all results, gradients and parameters; NaNs are alike."""
        total = hashlib.sha256()
        for item in self.tensors:
            values = _real(item)
            total.update(np.where(values == values, values, np.float32("nan")).tobytes())
        return total.hexdigest()[:16]


def misfits(stepped: Stepped, fmt: str) -> int:
    """How many elements are no values of the format."""
    return sum(_misfits_in(item, fmt) for item in stepped.tensors)


def _real(item: torch.Tensor) -> np.ndarray:
    """The elements, or their two parts, row by row; those of 16-bit dtypes in float32, exactly."""
    real = torch.view_as_real(item.resolve_conj()) if item.is_complex() else item.resolve_neg()
    return np.ascontiguousarray((real.float() if real.element_size() < 4 else real).numpy())


def _misfits_in(item: torch.Tensor, fmt: str) -> int:
    values = _real(item)
    if values.dtype != np.float32:  # float64 means itself
        return 0
    rounded = fpsim.round(values, fmt)
    return int(((rounded != values) & ~((rounded != rounded) & (values != values))).sum())


def try_entry(key: str, arithmetics: Sequence[str] = tuple(NARROW)) -> dict[str, Any]:
    """What is found of a model in these of `NARROW`, as JSON holds it.

    plain       seconds of processor time of its second step in torch; or `excluded`, why torch does not run it
    identity    whether fp32 with native accumulation gives the same bits; None where torch's own differ from run to run
    NAME        for each arithmetic: seconds, elements that are no values of the format, whether all are finite; or `raised`
    """
    entry = entry_of(key)
    try:
        plain = Stepped(entry, steps=2)
        again = Stepped(entry, steps=2)
    except Exception as error:  # noqa: BLE001 (whatever a model raises, that is the finding)
        return {"excluded": _sentence(error)}
    found: dict[str, Any] = {
        "parameters": plain.parameters, "plain": round(min(plain.seconds, again.seconds), 5), "identity": None,
    }  # fmt: skip
    if plain.digest() == again.digest():
        wide = _attempt(entry, "fp32", "native")
        found["identity"] = wide.digest() == plain.digest() if isinstance(wide, Stepped) else wide
    for name in arithmetics:
        fmt, accumulate = NARROW[name]
        stepped = _attempt(entry, fmt, accumulate)
        found[name] = (
            {"seconds": round(stepped.seconds, 5), "misfits": misfits(stepped, fmt), "finite": stepped.is_finite}
            if isinstance(stepped, Stepped)
            else {"raised": stepped}
        )
    return found


def _attempt(entry: Entry, fmt: str, accumulate: str) -> Stepped | str:
    try:
        return Stepped(entry, lambda model: fpsim.run(model, fmt=fmt, accumulate=accumulate), steps=2)
    except Exception as error:  # noqa: BLE001 (as above)
        return _sentence(error)


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def operations_that_stop(found: dict[str, Any]) -> Iterator[str]:
    """What each arithmetic that did not run raised."""
    for name in NARROW:
        if "raised" in found.get(name, {}):
            yield f"{name}: {found[name]['raised']}"
