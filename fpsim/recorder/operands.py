"""Operands that tell machines apart: the same ones on every machine, from seeds."""

from __future__ import annotations

import math

import torch

HALVES = (torch.float16, torch.bfloat16)


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

    def cancelling(self, seed: int, m: int, k: int, n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrices (m, k) and (k, n) whose products cancel exactly, the second half of the terms against the first.

        So a result is what rounding has left of the sum, and even an output of 16 bits tells orders of float32 sums apart.
        A last odd term is zero; terms are about 2^10, so that what is left is no subnormal of fp16.
        """
        half = k // 2
        a, b = self.random(seed, m, half, dtype=dtype, scale=32.0), self.random(seed + 1, half, n, dtype=dtype, scale=32.0)
        rest = [a.new_zeros(m, k % 2)], [b.new_zeros(k % 2, n)]
        return torch.cat([a, -a, *rest[0]], 1), torch.cat([b, b, *rest[1]], 0)

    def special(self, seed: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Numbers near the ends of the range, subnormals, zeros of both signs, a few infinities and NaN."""
        generator = _generator(seed)
        info = torch.finfo(dtype)
        least = info.smallest_normal * info.eps
        ends = [0.0, 1.0, least, 3 * least, info.tiny, info.max]
        choices = torch.tensor([*ends, *(-x for x in ends), math.inf, -math.inf, math.nan], dtype=torch.float64)
        weights, count = torch.tensor([8.0] * 2 * len(ends) + [0.1] * 3), math.prod(shape)
        picked = choices[torch.multinomial(weights, count, replacement=True, generator=generator)]
        ordinary = torch.rand(count, generator=generator) < 0.7
        x = torch.where(ordinary, torch.randn(count, generator=generator).double(), picked)
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
