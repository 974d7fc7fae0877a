"""What the emulation raises when it cannot vouch for an operation."""

from __future__ import annotations


class UnsupportedOp(NotImplementedError):
    """An operation that no rule covers, or that a rule refuses; its message names the op, its inputs and its module."""


class UnsupportedTensor(UnsupportedOp, TypeError):
    """A tensor that the machine under emulation does not have: another dtype, another device, another layout."""


class OutsideContext(RuntimeError):
    """A backward pass or an optimizer step of an emulated model outside the emulating context."""
