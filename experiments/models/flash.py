"""Attention as flash attention computes it, with the places where it rounds (arXiv 2510.04212, Dao 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fpsim


class _Cast(torch.autograd.Function):
    """Rounded to a format; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fmt: str, rounding: str, seed: int | None) -> Tensor:
        return torch.from_numpy(fpsim.round(x.detach().contiguous().numpy(), fmt, rounding=rounding, seed=seed))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient, None, None, None


@dataclass(frozen=True)
class Flash:
    """Where it rounds.

    values, output   the formats that P and v, and P v, are rounded to; "" for none
    shift       where a maximum m stands twice in a row: shift * m for positive m, 0 for negative; 1: m as it is
    rounding    of P v
    """

    values: str = "bf16"
    output: str = "bf16"
    shift: float = 1.0
    rounding: str = "nearest-even"


class FlashAttention(nn.Module):
    """softmax(q k / sqrt(d)) v by P = exp(scores - maximum), rounded, and P v, rounded before it is divided by the sum of P.

    Its gradient by autograd is flash attention's: dS = P (dO v - delta), delta the row's sum of dO times the rounded output.
    In training it counts rows, those whose maximum stands twice, and the errors of P v.
    """

    def __init__(self, where: Flash, seed: int = 0):
        super().__init__()
        self.where, self.seed = where, seed
        self.calls = self.rows = self.repeated = 0
        self.errors: list[float] = []  # of each call's P v, the mean signed error in units in the last place

    def forward(self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
        scores = q @ k.transpose(-2, -1) * (1 / math.sqrt(q.shape[-1]))
        if is_causal:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, -math.inf)
        top = scores.detach().amax(-1, keepdim=True)
        repeated = (scores.detach() == top).sum(-1, keepdim=True) > 1
        moved = torch.where(top > 0, top * self.where.shift, torch.zeros_like(top)) if self.where.shift != 1 else top
        p = (scores - torch.where(repeated, moved, top)).exp()
        total = p.sum(-1, keepdim=True)
        product = self._round(p, self.where.values) @ self._round(v, self.where.values)
        found = self._round(product, self.where.output, self.where.rounding)
        if self.training:
            self._note(repeated, product, found)
        return found / total

    def _round(self, x: Tensor, fmt: str, rounding: str = "nearest-even") -> Tensor:
        if not fmt:
            return x
        self.calls += 1
        seed = self.seed * 2**32 + self.calls if rounding == "stochastic" else None
        return _Cast.apply(x, fmt, rounding, seed)

    def _note(self, repeated: Tensor, product: Tensor, found: Tensor) -> None:
        self.rows += repeated.numel()
        self.repeated += int(repeated.sum())
        if self.where.output:
            exact, rounded = product.detach().double().numpy(), found.detach().numpy()
            error = (rounded.astype(np.float64) - exact) / fpsim.ulp(rounded, self.where.output)
            self.errors.append(math.fsum(error.ravel()) / error.size)
