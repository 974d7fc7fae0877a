"""Complex numbers as pairs of real ones: complex64 memory is float32 memory, and marks say what it holds either way."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from fpsim.emulation.machine import marks

COMPLEX64 = torch.complex64
_Key = torch._C.DispatchKey


def conjugating() -> AbstractContextManager[None]:
    """Within a handler of operations: what torch's kernels themselves conjugate in passing is conjugated when read.

    Torch leaves that out there, and kernels made of others (a pseudoinverse) then go on with numbers that are not.
    """
    excluded = torch._C._dispatch_tls_local_exclude_set().remove(_Key.Conjugate).remove(_Key.Negative)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)


def parts_of(tensor: torch.Tensor) -> torch.Tensor:
    """The real and imaginary parts along a last axis: the same memory, unless the tensor is one that conjugates when read."""
    if tensor.is_conj() or tensor.is_neg():
        tag, tensor = marks.tag_on(tensor), tensor.resolve_conj().resolve_neg()
        if tag is not None:
            marks.mark(tensor, tag)  # a format has the negative of each value
    return torch.view_as_real(tensor)


def joined(parts: torch.Tensor) -> torch.Tensor:
    """Complex numbers from parts along the last axis, in the same memory if they lie side by side there."""
    if parts.stride(-1) != 1 or any(stride % 2 for stride in parts.stride()[:-1]) or parts.storage_offset() % 2:
        tag, parts = marks.tag_on(parts), parts.contiguous()
        if tag is not None:
            marks.mark(parts, tag)
    return torch.view_as_complex(parts)
