"""Process-wide switches of torch that hide operations from a dispatch mode: off on entry, restored on the last exit."""

from __future__ import annotations

import threading

import torch

from fpsim.emulation.rms_normalization import rms_norm

_lock = threading.Lock()
_entered = 0
_saved: tuple[bool, ...] = ()
_rms_norm = torch.rms_norm


def _read() -> tuple[bool, ...]:
    return (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch._C._get_mkldnn_enabled(),
        torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed(),
    )


def _write(values: tuple[bool, ...]) -> None:
    fastpath, flash, efficient, math, mkldnn, half_attention = values
    torch.backends.mha.set_fastpath_enabled(fastpath)
    torch.backends.cuda.enable_flash_sdp(flash)
    torch.backends.cuda.enable_mem_efficient_sdp(efficient)
    torch.backends.cuda.enable_math_sdp(math)
    torch._C._set_mkldnn_enabled(mkldnn)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(half_attention)


def enter() -> None:
    """Switch fused attention, oneDNN and the upcast of half attention off, and `rms_norm` to one operation.

    The first entry remembers what they were.
    """
    global _entered, _saved, _rms_norm
    with _lock:
        if _entered == 0:
            _saved, _rms_norm = _read(), torch.rms_norm
            _write((False, False, False, True, False, True))
            torch.rms_norm = rms_norm
        _entered += 1


def leave() -> None:
    """Undo one `enter`; the last one restores what the first one found."""
    global _entered
    with _lock:
        _entered -= 1
        if _entered == 0:
            _restore()


def _restore() -> None:
    _write(_saved)
    torch.rms_norm = _rms_norm


def reset() -> None:
    """In a forked child, where nothing is emulated: restore at once."""
    global _entered, _lock
    _lock = threading.Lock()  # another thread of the parent may have held the old one
    if _entered:
        _entered = 0
        _restore()
