"""A copy of the weights in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fpsim.emulation.dispatch.context import current
from fpsim.emulation.machine.marks import set_beside
from fpsim.optim.formats import rounded_like
from fpsim.optim.wrapping import loss_of


class MasterCopy(torch.optim.Optimizer):
    """Any torch optimizer, stepping a float32 copy of the weights, of which they are the rounded values.

    The inner optimizer is made over: its groups hold the copies, `param_groups` here are its own (lr and the like are
    shared), and its state is float32 (Micikevicius et al., arXiv 1710.03740). Gradients are widened before each step. Weights
    are bfloat16 or float16 tensors, plain or under fmt="native"; under a named format there is no float32 to keep, and
    ValueError says how a mapping does it.

        optimizer = fpsim.optim.MasterCopy(torch.optim.AdamW(model.parameters(), lr=1e-4))
    """

    def __init__(self, inner: torch.optim.Optimizer):
        if not isinstance(inner, torch.optim.Optimizer):
            raise TypeError(f"the first argument is a torch optimizer, not {type(inner).__name__}")
        if inner.state:
            raise ValueError("this optimizer has stepped: wrap it before its first step")
        self.inner = inner
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        groups = [{**group, "params": list(group["params"])} for group in inner.param_groups]
        super().__init__(groups, inner.defaults)
        for outer, group in zip(self.param_groups, inner.param_groups, strict=True):
            _require_float32_elsewhere(outer["params"])
            copies = [item.detach().float().requires_grad_(item.requires_grad) for item in outer["params"]]
            self._pairs.extend(zip(outer["params"], copies, strict=True))
            group["params"] = copies

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of the copies, then their rounded values to the weights; returns what the closure does."""
        loss = loss_of(closure)
        with torch.no_grad():
            for outer, group in zip(self.param_groups, self.inner.param_groups, strict=True):
                group.update({key: value for key, value in outer.items() if key != "params"})
            for weight, copy in self._pairs:
                set_beside((copy,), weight)
                copy.grad = None if weight.grad is None else weight.grad.float()
            self.inner.step()
            for weight, copy in self._pairs:
                if copy.grad is not None:
                    weight.copy_(rounded_like(copy.double(), weight))
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's under "inner", the copies under "copies"."""
        return {"inner": self.inner.state_dict(), "copies": [copy.detach().clone() for _, copy in self._pairs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """ValueError where the number of parameters differs."""
        copies = state_dict["copies"]
        if len(copies) != len(self._pairs):
            raise ValueError(f"the state is of {len(copies)} parameters, the optimizer has {len(self._pairs)}")
        self.inner.load_state_dict(state_dict["inner"])
        for outer, group in zip(self.param_groups, self.inner.param_groups, strict=True):
            outer.update({key: value for key, value in group.items() if key != "params"})
        with torch.no_grad():
            for (_, copy), saved in zip(self._pairs, copies, strict=True):
                copy.copy_(saved)


def _require_float32_elsewhere(parameters: list[torch.Tensor]) -> None:
    emulation = current()
    for item in parameters:
        if item.dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"a master copy is of bfloat16 or float16 weights, not of {item.dtype}; under a named format use "
                "fmt={'*': ..., 'weight': 'fp32', 'optimizer': 'fp32'} of fpsim.run, which keeps weights in float32"
            )
    if emulation is not None and not emulation.policy.is_native:
        raise ValueError("under a named format there is no float32: use fmt='native', or a mapping with the role 'weight'")
