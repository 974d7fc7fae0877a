"""Two models on the same data: how far apart their outputs are, and what that says about their classes.

The lemma of arXiv 2305.10947, with strict >: if Gamma(A, x) > 2 delta(A, B, x) then A and B give x the same class. At
equality they may tie: A = (0.375, 0.625), B = (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fpsim.emulation.certification.certificate import classification_tolerance


@dataclass(frozen=True)
class Tolerance:
    """For every input of the data, in order (float64 and booleans).

    delta     the largest |a_i - b_i| over the outputs: the floating-point error of the one against the other
    gamma     the classification tolerance of the first model: its largest output less its second largest
    agree     whether both give the same class (the first largest output)
    covered   whether gamma > 2 delta, so that they must; False for NaN
    correct   whether each model's class is the target, or None where the data has no targets
    """

    delta: torch.Tensor
    gamma: torch.Tensor
    agree: torch.Tensor
    covered: torch.Tensor
    correct: tuple[torch.Tensor, torch.Tensor] | None

    @property
    def agreement(self) -> float:
        """A, the fraction of inputs that both give the same class."""
        return float(self.agree.double().mean())

    @property
    def covered_fraction(self) -> float:
        """C <= A, the fraction for which the lemma says so."""
        return float(self.covered.double().mean())

    @property
    def accuracy_difference(self) -> float:
        """|accuracy of the first - accuracy of the second| <= 1 - A <= 1 - C; NaN without targets."""
        if self.correct is None:
            return float("nan")
        first, second = (part.double().mean() for part in self.correct)
        return abs(float(first - second))

    def __str__(self) -> str:
        text = (
            f"{len(self.delta)} inputs: delta {float(self.delta.mean()):.3g} mean, {float(self.delta.max()):.3g} largest; "
            f"Gamma {float(self.gamma.mean()):.3g} mean; A = {self.agreement:.4f}, C = {self.covered_fraction:.4f}"
        )
        if self.correct is None:
            return text
        return f"{text}; |accuracy difference| = {self.accuracy_difference:.4f} <= 1 - A <= 1 - C"


def tolerance(model_a: nn.Module, model_b: nn.Module, loader: Iterable[Any]) -> Tolerance:
    """Compare two models or simulations on the same data.

    Parameters
    ----------
    model_a, model_b : modules that take a batch and give (n, ..., classes); either may be a `Simulation`. They are put in
        eval mode while this runs.
    loader : batches as a `DataLoader` gives them: inputs, or (inputs, targets) with targets (n, ...) of class numbers.

    Returns
    -------
    A `Tolerance`. An input with a NaN in either output is never covered, and its delta and gamma are NaN.

    Raises
    ------
    ValueError : no batches, outputs of two shapes, or targets that do not fit them.
    """
    parts: list[tuple[torch.Tensor, ...]] = []
    modes = [(model, model.training) for model in (model_a, model_b)]
    try:
        for model, _ in modes:
            model.eval()
        with torch.no_grad():
            for batch in loader:
                inputs, targets = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)
                parts.append(_compared(_outputs(model_a, inputs), _outputs(model_b, inputs), targets))
    finally:
        for model, training in modes:
            model.train(training)
    if not parts:
        raise ValueError("loader gave no batches")
    if len({len(part) for part in parts}) > 1:
        raise ValueError("loader gave targets with some batches only")
    delta, gamma, agree, *correct = (torch.cat(columns) for columns in zip(*parts, strict=True))
    # Rounded outward: delta errs by one rounding of each difference, gamma by one.
    covered = gamma - 2.0**-52 * gamma > 2 * delta * (1 + 2.0**-51)
    return Tolerance(delta, gamma, agree, covered, (correct[0], correct[1]) if correct else None)


def _outputs(model: nn.Module, inputs: Any) -> torch.Tensor:
    result = model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)
    return getattr(result, "logits", result).double()


def _compared(a: torch.Tensor, b: torch.Tensor, targets: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    if a.shape != b.shape:
        raise ValueError(f"the models' outputs differ in shape: {tuple(a.shape)} and {tuple(b.shape)}")
    difference = torch.where(a == b, 0.0, (a - b).abs())
    results = (difference.amax(-1).flatten(), classification_tolerance(a).flatten(), (a.argmax(-1) == b.argmax(-1)).flatten())
    if targets is None:
        return results
    if targets.shape != a.shape[:-1]:
        raise ValueError(f"targets of shape {tuple(targets.shape)} do not fit outputs of shape {tuple(a.shape)}")
    return (*results, *((model.argmax(-1) == targets).flatten() for model in (a, b)))
