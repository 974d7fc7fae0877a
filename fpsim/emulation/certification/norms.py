"""Upper bounds of spectral norms, for deep networks: there |W| from layer to layer grows much faster than ||W|| does.

    dense          ||M||^2 = ||G||, G = M M^T, and ||G||^p = ||G^p|| <= ||G^p||_F (p = 16, by squaring)
    convolution    zero padding and strides cut pieces out of a convolution over the whole grid, whose norm is the largest of
                   ||W(w)|| over frequencies w, W(w) = sum W[:, :, d] exp(i d w) (Sedghi, Gupta and Long, ICLR 2019). u* W(w) v
                   is a trigonometric polynomial of degree n in each direction, so that N > 2 n points in each show its largest
                   value up to 1 / cos(pi n / N) (Ehlich and Zeller, Math. Z. 86, 1964)
    anything       ||S||^2 <= largest row sum * largest column sum of |S| (Schur)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch

from fpsim.emulation.certification.slopes import Slope, transpose

_SQUARINGS = 4
_WIDE = 256  # channels from which the grid of frequencies is coarser
_known: dict[tuple[str, bytes], float] = {}


def _cached(kind: str, tensor: torch.Tensor, compute: Callable[[torch.Tensor], float]) -> float:
    key = (kind, hashlib.blake2b(tensor.contiguous().numpy().tobytes() + repr(tensor.shape).encode()).digest())
    if key not in _known:
        if len(_known) > 512:
            _known.clear()
        _known[key] = compute(tensor)
    return _known[key]


def matrix_norm(matrix: torch.Tensor) -> float:
    """An upper bound of the spectral norm of a real matrix."""
    return _cached("matrix", matrix, lambda m: float(_norms(m[None])[0]))


def convolution_norm(weight: torch.Tensor) -> float:
    """An upper bound of the norm of a convolution (or transposed one) with zero padding, any stride and dilation, one group."""
    return _cached("convolution", weight, _convolution_norm)


def _convolution_norm(weight: torch.Tensor) -> float:
    sizes = weight.shape[2:]
    factor, grids = 1.0, []
    for size in sizes:
        degree = size // 2
        points = (6 if max(weight.shape[:2]) > _WIDE else 12) * degree or 1
        factor /= math.cos(math.pi * degree / points) if degree else 1.0
        grids.append(2 * math.pi * torch.arange(points, dtype=torch.float64) / points)
    frequencies = torch.cartesian_prod(*grids) if len(grids) > 1 else grids[0][:, None]
    places = torch.cartesian_prod(*(torch.arange(size, dtype=torch.float64) for size in sizes)).reshape(-1, len(sizes))
    flat = weight.reshape(*weight.shape[:2], -1).to(torch.complex128)
    largest = 0.0
    for chunk in frequencies.split(8):
        phases = torch.exp(1j * (chunk @ places.T))
        largest = max(largest, float(_norms(torch.einsum("fp,oip->foi", phases, flat)).max()))
    return largest * factor * (1 + 2.0**-30)


def _norms(matrices: torch.Tensor) -> torch.Tensor:
    """Upper bounds of the spectral norms of a batch.

    A squaring errs by less than n^1.5 u of ||G^2||_F; all of them together by less than the last factor says.
    """
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.mH
    scale = torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=1e-300)
    unit = matrices / scale
    power = unit @ unit.mH
    logarithm = torch.zeros(len(matrices), dtype=torch.float64)
    for _ in range(_SQUARINGS):
        size = torch.linalg.matrix_norm(power, keepdim=True).clamp(min=1e-300)
        logarithm = 2 * (logarithm + torch.log(size[:, 0, 0]))
        power = power / size
        power = power @ power
    logarithm = logarithm + torch.log(torch.linalg.matrix_norm(power))
    inner = max(matrices.shape[1:])
    slack = 2.0 ** (_SQUARINGS + 2) * inner**1.5 * 2.0**-50
    return scale[:, 0, 0] * torch.exp(logarithm / 2 ** (_SQUARINGS + 1)) * (1 + slack + 2.0**-40)


def slope_norm(slope: Slope, shape: torch.Size) -> float:
    """An upper bound of the spectral norm of every matrix of a slope."""
    if slope.norm is not None:
        return slope.norm()
    ones = torch.ones(shape, dtype=torch.float64)
    rows = slope.size(ones)
    columns = transpose(slope.size, shape)(torch.ones(1, *rows.shape, dtype=torch.float64))
    slack = 1 + (rows.numel() + ones.numel() + 64) * 2.0**-52
    return math.sqrt(float(rows.max()) * float(columns.max())) * slack
