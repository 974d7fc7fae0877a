"""A task on which flash attention meets the conditions of arXiv 2510.04212: W_Q and W_K are trained, data are drawn anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from experiments.draws import Draws
from experiments.models.flash import FlashAttention

SEQUENCES, KEYS, WIDTH, OWN = 64, 16, 16, 4
#: What all tokens share, and the score that all keys have of it at first: COMMON^2 START^2 / sqrt(WIDTH).
COMMON, START = 2.0, 2.0


@dataclass(frozen=True)
class Conditions:
    """`maxima` keys of a row share its largest score, the others lie 8 to 20 below; V is of one sign, or of both."""

    maxima: int = 2
    sign: str = "negative"

    def batch(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (64, 1, 5), keys (64, 16, 5) and V (64, 16, 16): a query's own coordinate is that of its sequence's keys."""
        own = draws.integers(OWN, SEQUENCES)
        side = np.where(draws.uniform(SEQUENCES) < 0.5, -1.0, 1.0)
        below = 8 + 12 * draws.uniform(SEQUENCES, KEYS)
        below[:, : self.maxima] = 0.0
        queries, keys = np.zeros((SEQUENCES, 1, 1 + OWN)), np.zeros((SEQUENCES, KEYS, 1 + OWN))
        queries[..., 0] = keys[..., 0] = COMMON
        each = np.arange(SEQUENCES)
        queries[each, 0, 1 + own] = side
        keys[each, :, 1 + own] = -side[:, None] * below
        v = 0.5 + 0.5 * draws.uniform(SEQUENCES, KEYS, WIDTH)
        if self.sign == "both":
            v *= np.where(draws.uniform(SEQUENCES, KEYS, WIDTH) < 0.5, -1.0, 1.0)
        else:
            v = -v
        return (
            torch.tensor(queries.astype(np.float32)),
            torch.tensor(keys.astype(np.float32)),
            torch.tensor(v.astype(np.float32)),
        )


class Head(nn.Module):
    """One head. All queries and keys share a direction; a query's own coordinate meets that of the keys."""

    def __init__(self, attention: FlashAttention):
        super().__init__()
        self.attention = attention
        self.query, self.key = (nn.Linear(1 + OWN, WIDTH, bias=False) for _ in range(2))
        with torch.no_grad():
            for layer, factor in ((self.query, WIDTH**0.5), (self.key, 1.0)):
                layer.weight.zero_()
                layer.weight[0, 0] = START
                for index in range(OWN):
                    layer.weight[1 + index, 1 + index] = factor

    def forward(self, queries: Tensor, keys: Tensor, v: Tensor) -> Tensor:
        return self.attention(self.query(queries), self.key(keys), v)
