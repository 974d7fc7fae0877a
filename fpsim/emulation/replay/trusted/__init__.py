"""Arguments that torch's kernels trust: indices, lengths and offsets in tensors, sizes of windows, how often to iterate.

Torch finds the shapes of results from the shapes of operands and checks them. What stands *in* a tensor is checked by some
kernels and by others not, nor is every pair of shapes; so each operation with such an argument has a row here, and one that
gets integers without having a row is not called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fpsim.emulation.replay.trusted import indices, shapes, targets
from fpsim.emulation.replay.trusted.requirements import MOST_ITERATIONS, Arguments, Untrusted, require_at_most
from fpsim.emulation.schemas import names

__all__ = ["Untrusted", "check_arguments"]

#: Families whose integers are numbers like others, and operations that read them so, or check every one themselves.
_BY_VALUE = frozenset(
    names(
        """
        elementwise formula elementary comparison constant foreach optimizer view
        where maximum minimum fmax fmin cat stack copysign copy _to_copy nonzero_static _chunk_cat block_diag
        neg abs sign tril triu sum mean prod cumsum cumprod max min amax amin sort topk median kthvalue
        masked_scatter masked_select masked_scatter_backward threshold_backward
        """
    )
)
_POLYNOMIALS = ("chebyshev_polynomial", "hermite_polynomial", "laguerre_polynomial", "legendre_polynomial")
_ROWS = {**indices.ROWS, **targets.ROWS, **shapes.ROWS}


def check_arguments(name: str, family: str, named: Arguments) -> None:
    """Raises Untrusted for arguments of the operation `aten::<name>` that its kernels would follow out of their operands.

    `named` has every argument by its name, and shapes that torch accepts.
    """
    base = name.removesuffix("_")
    if base in _ROWS:
        _ROWS[base](named)
    elif family not in _BY_VALUE and base not in _BY_VALUE and _has_integers(named.values()):
        raise Untrusted("it is given integers that are not checked before")
    if "padding" in named and "_pad" not in base:
        shapes.check_windows(named)
    if base.startswith(("_foreach_", "_fused_")):
        shapes.check_lists(base, named)
    if any(kind in base for kind in _POLYNOMIALS):
        require_at_most(named["n"], MOST_ITERATIONS, "the degree")
    for key in ("scales", "scales_d", "scales_h", "scales_w"):
        if named.get(key) is not None:
            shapes.check_scale(named, key)


def _has_integers(values: Iterable[Any]) -> bool:
    for value in values:
        if isinstance(value, (list, tuple)) and _has_integers(value):
            return True
        if isinstance(value, torch.Tensor) and not (value.is_floating_point() or value.dtype is torch.bool):
            return True
    return False
