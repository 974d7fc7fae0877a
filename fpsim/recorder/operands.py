"""Operands that tell machines apart: the same ones on every machine, from seeds."""

from __future__ import annotations

import math

import torch

HALVES = (torch.float16, torch.bfloat16)
_PRECISION = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}
_LEAST = {torch.float16: -14, torch.bfloat16: -126, torch.float32: -126, torch.float64: -1022}


class Draw:
    """Operands for one device; every call draws from the generator of its seed alone."""

    def __init__(self, device: torch.device):
        self.device = device

    def random(self, seed: int, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
        """Normally distributed numbers."""
        return self._to(torch.randn(shape, generator=_generator(seed)) * scale, dtype)

    def wide(self, seed: int, *shape: int, dtype: torch.dtype, spread: int = 6) -> torch.Tensor:
        """Exponents spread over 2 * spread binades around 1, a tenth zeros."""
        generator = _generator(seed)
        exponents = torch.randint(-spread, spread + 1, shape, generator=generator).float()
        x = torch.randn(shape, generator=generator) * torch.exp2(exponents)
        return self._to(torch.where(torch.rand(shape, generator=generator) < 0.1, 0.0, x), dtype)

    def cancelling(self, seed: int, rows: int, columns: int, dtype: torch.dtype, axis: int) -> torch.Tensor:
        """A matrix whose neighbors along `axis` are each other's negatives but for a few units in the last place."""
        generator = _generator(seed)
        x = torch.randn((rows, columns), generator=generator)
        pairs, count = (x if axis == 0 else x.T), (rows if axis == 0 else columns) // 2
        noise = 1 + torch.randn(pairs[:count].shape, generator=generator) * 2.0 ** (2 - _PRECISION[dtype])
        pairs[1 : 2 * count : 2] = -pairs[0 : 2 * count : 2] * noise
        return self._to(x, dtype)

    def special(self, seed: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Numbers near the ends of the range, subnormals, zeros of both signs, a few infinities and NaN."""
        generator = _generator(seed)
        info = torch.finfo(dtype)
        least = 2.0 ** (_LEAST[dtype] - _PRECISION[dtype] + 1)
        choices = torch.tensor(
            [0.0, -0.0, 1.0, -1.0, least, -least, 3 * least, info.tiny, -info.tiny, info.max, -info.max, math.inf, -math.inf]
            + [math.nan],
            dtype=torch.float64,
        )
        weights = torch.tensor([8.0] * 11 + [0.1] * 3)
        picked = torch.multinomial(weights, math.prod(shape), replacement=True, generator=generator)
        x = torch.where(
            torch.rand(math.prod(shape), generator=generator) < 0.7,
            torch.randn(math.prod(shape), generator=generator).double(),
            choices[picked],
        )
        return x.reshape(shape).to(dtype).to(self.device)

    def every(self, dtype: torch.dtype) -> torch.Tensor:
        """All 65,536 values of a 16-bit dtype."""
        return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).to(self.device)

    def near_midpoints(self, seed: int, dtype: torch.dtype, count: int) -> torch.Tensor:
        """float32 numbers: random bits, and values of a 16-bit dtype, its midpoints, and what is next to both."""
        generator = _generator(seed)
        codes = torch.randint(0, 2**15 - 1, (count,), generator=generator, dtype=torch.int32)
        low, high = (part.to(torch.int16).view(dtype).double() for part in (codes, codes + 1))
        middle = ((low + high) / 2).float()
        bits = middle.view(torch.int32) + torch.randint(-2, 3, (count,), generator=generator, dtype=torch.int32)
        random = torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32)
        return torch.cat([bits.view(torch.float32), -middle, random.view(torch.float32)]).to(self.device)

    def _to(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return x.to(dtype).to(self.device)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
