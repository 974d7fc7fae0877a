"""The processor's treatment of subnormal numbers, without which nothing here is right."""

import numpy as np

_SMALLEST_NORMAL = np.array([np.finfo(np.float32).smallest_normal, 0.5], dtype=np.float32)


def refuse_flush_to_zero() -> None:
    """Raise if this thread's processor flushes subnormals to zero or takes them for zeros.

    Raises
    ------
    ValueError : such a mode breaks gradual underflow, silently, in every float operation.
    """
    halved = _SMALLEST_NORMAL[0] * _SMALLEST_NORMAL[1]  # subnormal: 0 when results are flushed
    if halved + halved != _SMALLEST_NORMAL[0]:  # operands taken for zeros would give 0
        raise ValueError(
            "this process flushes subnormal numbers to zero (torch.set_flush_denormal(True) or the like), which breaks "
            "emulation; call torch.set_flush_denormal(False)"
        )
