"""What the emulation raises when it cannot vouch for an operation."""

from __future__ import annotations

from typing import Any

import torch

_RECORDING = torch._C._TorchDispatchModeKey.PROXY  # type: ignore[attr-defined]
NESTED = "a nested tensor of the strided layout: make it with layout=torch.jagged, pad its parts and use a mask,"


class UnsupportedOp(NotImplementedError):
    """An operation that no rule covers, or that a rule refuses; its message names the op, its inputs and its module."""

    complete = False

    def complete_with(self, op: Any, inputs: str, path: str) -> None:
        """Add what the operation got, where it was called and what can be done, once."""
        if self.complete:
            return
        self.complete = True
        name = str(op)
        register = f"torch.ops.{name}" if "." in name and "::" not in name else name
        where = f"the module {path!r}" if path else "outside any module"
        advice = (
            f"a rule of your own: @fpsim.emulation.register({register}) on a function (machine, *args, **kwargs) that computes "
            "on machine.operand(tensor) and returns machine.finish(result); help(fpsim.emulation.register) has an example"
        )
        self.args = ("\n  ".join((str(self), f"inputs: {inputs or 'none'}", f"called from {where}", advice)),)


class UnsupportedTensor(UnsupportedOp):
    """A tensor that the machine under emulation does not have: another dtype, another device, another layout.

    No TypeError: torch's operators would take one for "not implemented" and hide what it says.
    """


class SparseTensor(UnsupportedTensor):
    """A tensor of another layout where a rule takes dense ones; for some operations there is a rule of its own."""


class BeingTraced(UnsupportedOp):
    """A tracer records the model, on tensors without numbers or with numbers made into constants, inside the emulation."""

    complete = True

    def __init__(self, op: Any):
        super().__init__(
            f"{op}: torch.jit.trace, torch.export, make_fx or torch.func.linearize records operations here; trace the model "
            "outside of the emulation, and run what comes of it inside"
        )


def stop_recording(op: Any) -> None:
    """Refuse an operation that a mode below records: it would see nothing of it, and take the result for a constant."""
    if torch._C._get_dispatch_mode(_RECORDING) is not None:  # type: ignore[attr-defined]
        raise BeingTraced(op)


class MetaTensor(UnsupportedTensor):
    """A tensor without numbers, with which torch itself finds shapes; it reaches nobody but the dispatch mode."""


class OutsideContext(RuntimeError):
    """A module, a backward pass or an optimizer step of an emulated model outside the emulating context."""


class NonFinite(ArithmeticError):
    """An infinity or NaN was made, or came in: what `on_nonfinite="raise"` stops at, with what was behind it."""
