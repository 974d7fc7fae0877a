"""Connectionist temporal classification, in the order of operations of ATen's `native/LossCTC.cpp` (Graves et al., 2006).

The sums of exponentials are three terms in a row, each the exponential of a difference to the largest; log alpha is kept in
the format. A gradient adds up what the places of a class bring in descending order of places, in logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from fpsim.emulation.registry import steps

Tensor = torch.Tensor


class _Alignments:
    """Blank, first label, blank, second label ... of every image, with which places follow each other."""

    def __init__(self, targets: Tensor, inputs: Any, lengths: Any, blank: int):
        lengths, inputs = ([int(item) for item in values] for values in (lengths, inputs))
        width = 2 * max(lengths, default=0) + 1
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        rows = [
            (targets[start : start + size] if targets.dim() == 1 else targets[i, :size]).long()
            for i, (start, size) in enumerate(zip(starts, lengths, strict=True))
        ]
        self.labels = torch.full((len(rows), width), blank, dtype=torch.int64)  # (images, places)
        for i, row in enumerate(rows):
            self.labels[i, 1 : 2 * len(row) : 2] = row
        self.sizes = torch.tensor(lengths, dtype=torch.int64).unsqueeze(1)
        self.inputs = torch.tensor(inputs, dtype=torch.int64).unsqueeze(1)
        places = torch.arange(width)
        self.exists = places <= 2 * self.sizes
        self.skips = torch.zeros_like(self.exists)  # whether the place can follow the second one before
        self.skips[:, 2:] = (self.labels[:, 2:] != self.labels[:, :-2]) & self.exists[:, 2:]

    def last(self, values: Tensor, back: int) -> Tensor:
        """(images): the value of the last place, or of the one before it."""
        return values.gather(1, (2 * self.sizes - back).clamp(min=0)).squeeze(1)


def _shifted(values: Tensor, by: int, nothing: Tensor) -> Tensor:
    """The values `by` places before each place (after it, where negative)."""
    count = min(abs(by), values.shape[1])
    gap = nothing.expand(len(values), count)
    return torch.cat([gap, values[:, : -count or None]], 1) if by > 0 else torch.cat([values[:, count:], gap], 1)


def _log_sum(terms: Sequence[Tensor], nothing: Tensor) -> Tensor:
    """log(exp(a - m) + exp(b - m) ...) + m with the largest, m, or 0 where all are log 0."""
    largest = terms[0]
    for term in terms[1:]:
        largest = torch.maximum(largest, term)
    largest = torch.where(largest == nothing, 0.0, largest)
    total = (terms[0] - largest).exp()
    for term in terms[1:]:
        total = total + (term - largest).exp()
    return torch.where(total == 0, nothing, total.log() + largest)


def _step(before: Tensor, emitted: Tensor, follows: Tensor, exists: Tensor, direction: int, nothing: Tensor) -> Tensor:
    """The next column of log alpha (direction 1) or log beta (-1)."""
    second = torch.where(follows, _shifted(before, 2 * direction, nothing), nothing)
    sums = _log_sum([before, _shifted(before, direction, nothing), second], nothing)
    return torch.where(exists, torch.where(sums == nothing, nothing, sums + emitted), nothing)


@steps("_ctc_loss")
def ctc_loss(
    log_probs: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any, blank: int = 0, zero_infinity: bool = False
) -> tuple[Tensor, Tensor]:
    lines = _Alignments(targets, input_lengths, target_lengths, blank)
    nothing = torch.full((), -math.inf, dtype=log_probs.dtype)
    images, width = lines.labels.shape
    alpha = torch.where(lines.exists & (torch.arange(width) < 2), log_probs[0].gather(1, lines.labels), nothing)
    columns = [torch.where(lines.inputs > 0, alpha, nothing)]
    for t in range(1, len(log_probs)):
        emitted = log_probs[t].gather(1, lines.labels)
        alpha = _step(columns[-1], emitted, lines.skips, lines.exists & (t < lines.inputs), 1, nothing)
        columns.append(alpha)
    table = torch.stack(columns, 1)  # (images, times, places)
    final = table.gather(1, (lines.inputs - 1).clamp(min=0).unsqueeze(2).expand(images, 1, width)).squeeze(1)
    one, two = lines.last(final, 0), torch.where(lines.sizes.squeeze(1) > 0, lines.last(final, 1), nothing)
    likelihood = torch.where(lines.sizes.squeeze(1) > 0, _log_sum([one, two], nothing), one)
    nobody = torch.where(lines.sizes.squeeze(1) > 0, torch.full_like(one, math.inf), torch.zeros_like(one))
    return torch.where(lines.inputs.squeeze(1) > 0, -likelihood, nobody), table


@steps("_ctc_loss_backward")
def ctc_loss_backward(
    gradient: Tensor, log_probs: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any, losses: Tensor,
    log_alpha: Tensor, blank: int, zero_infinity: bool = False,
) -> Tensor:  # fmt: skip
    lines = _Alignments(targets, input_lengths, target_lengths, blank)
    nothing = torch.full((), -math.inf, dtype=log_probs.dtype)
    times, images, classes = log_probs.shape
    width = lines.labels.shape[1]
    places = torch.arange(width)
    ends = lines.exists & (places >= 2 * lines.sizes - 1)
    follows = torch.zeros_like(lines.skips)
    follows[:, :-2] = lines.skips[:, 2:]
    beta, columns = nothing.expand(images, width), []
    for t in reversed(range(times)):
        emitted = log_probs[t].gather(1, lines.labels)
        moved = _step(beta, emitted, follows, lines.exists & (t < lines.inputs), -1, nothing)
        beta = torch.where(lines.inputs - 1 == t, torch.where(ends, emitted, nothing), moved)
        columns.append(beta)
    both = log_alpha + torch.stack(columns[::-1], 1)  # (images, times, places)
    sums = nothing.expand(images, times, classes)
    for place in reversed(range(width)):
        chosen = lines.labels[:, place].reshape(images, 1, 1).expand(images, times, 1)
        held, added = sums.gather(2, chosen), both[:, :, place].unsqueeze(2)
        there = lines.exists[:, place].reshape(images, 1, 1)
        new = torch.where(held == nothing, added, _log_sum([held, added], nothing))
        sums = sums.scatter(2, chosen, torch.where(there, new, held))
    probabilities = log_probs.transpose(0, 1)
    shares = (sums + losses.reshape(images, 1, 1) - probabilities).exp()
    result = (probabilities.exp() - shares) * gradient.reshape(images, 1, 1)
    kept = torch.arange(times).reshape(1, times) < lines.inputs
    if zero_infinity:
        kept = kept & (losses != math.inf).unsqueeze(1)
    return torch.where(kept.unsqueeze(2), result, 0.0).transpose(0, 1)
