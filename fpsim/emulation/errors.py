"""What the emulation raises when it cannot vouch for an operation."""

from __future__ import annotations


class UnsupportedOp(NotImplementedError):
    """An operation that no rule covers, or that a rule refuses; its message names the op, its inputs and its module."""


class UnsupportedTensor(UnsupportedOp):
    """A tensor that the machine under emulation does not have: another dtype, another device, another layout.

    No TypeError: torch's operators would take one for "not implemented" and hide what it says.
    """


class MetaTensor(UnsupportedTensor):
    """A tensor without numbers, with which torch itself finds shapes; it reaches nobody but the dispatch mode."""


class OutsideContext(RuntimeError):
    """A backward pass or an optimizer step of an emulated model outside the emulating context."""
