"""What certification gives: bounds, margins, and where the bounds come from; as numbers, as a table, as a picture."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from fpsim.emulation.certification.drawing import draw
from fpsim.emulation.certification.layers import Layer
from fpsim.numbers.showing import html_table

_HEADS = ("layer", "largest bound", "mean bound", "part")
LIBRARY = (
    "float64 and float32 operations of the library are correctly rounded, its elementary functions within 8 units in the last "
    "place, its sums in any order, without the shortcuts of Strassen, Winograd or Fourier transforms"
)


@dataclass(frozen=True)
class Certificate:
    """Bounds on |emulated logit - reference logit|, and whether they settle the class. Made by `certify`.

    logits      the logits whose margins count: the emulated run's ("a-priori": those of the exact model at the middle)
    bound       of the logits' shape; inf where something overflowed or saturated, or no bound is known
    delta       the largest bound of each input
    gamma       the classification tolerance of each input: its largest logit less its second largest
    predicted   the class of each input: the first largest logit
    certified   whether the reference model must give the same class: z_c - z_j > d_c + d_j for every other class j
    layers      one `Layer` for each module, in the order of the run. They are made when first asked for, until when the
                certificate holds on to the tensors of the run
    """

    method: str
    reference: str
    policy: str
    logits: torch.Tensor
    bound: torch.Tensor
    certified: torch.Tensor
    make_layers: Callable[[], tuple[Layer, ...]] = field(repr=False)
    confidence: float | None = None
    radius: Any = None

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        layers = self.make_layers()
        object.__setattr__(self, "make_layers", lambda: layers)
        return layers

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "layers": self.layers, "make_layers": None}

    @property
    def predicted(self) -> torch.Tensor:
        return self.logits.argmax(-1)

    @property
    def delta(self) -> torch.Tensor:
        return self.bound.amax(-1)

    @property
    def gamma(self) -> torch.Tensor:
        return classification_tolerance(self.logits)

    @property
    def statement(self) -> str:
        """What holds, of which run, and under which assumptions."""
        whose = "the emulated run's logits"
        if self.method == "a-priori":
            whose = "the emulated logits of every input in the box"
        against = "those of the original model in exact real arithmetic"
        if self.reference == "fp32":
            bounded = self.method in ("running", "a-priori")
            against = "those of any float32 run of the original model"
            if not bounded:
                against = "those of the float32 run of the original model that torch makes here"
        text = f"{whose} ({self.policy}) differ from {against} by at most `bound`"
        if self.confidence is not None:
            text += (
                f"; with probability {self.confidence:g} for each input, if the roundings' errors are independent of what was "
                "rounded before, with mean 0 (true of stochastic rounding to first order, a model of rounding to nearest)"
            )
        margin = "the exact model's at the middle of the box" if self.method == "a-priori" else "the emulated run's"
        return f"{text[0].upper()}{text[1:]}. The margin is {margin}. Assumed: {LIBRARY}."

    def table(self) -> str:
        """The layers as text: bounds, and each one's part of the mean bound of the logits."""
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for name in _HEADS:
            table.add_column(name, justify="left" if name == "layer" else "right")
        for cells in self._cells():
            table.add_row(*cells)
        console = Console(width=100, color_system=None, markup=False, emoji=False, highlight=False)  # a path may hold brackets
        with console.capture() as capture:
            console.print(table)
        return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())

    def _cells(self) -> list[tuple[str, str, str, str]]:
        total = sum(layer.part for layer in self.layers)
        parts = (f"{100 * layer.part / total:.1f} %" if 0 < total < float("inf") else "-" for layer in self.layers)
        return [
            (layer.path or "(model)", f"{layer.largest_bound:.3g}", f"{layer.mean_bound:.3g}", part)
            for layer, part in zip(self.layers, parts, strict=True)
        ]

    def _repr_html_(self) -> str:
        return html_table(str(self), self._cells(), _HEADS, self.statement)

    def plot(self) -> Any:
        """A matplotlib figure: the bound layer by layer, and each layer's part of the logits' bound."""
        return draw(self.layers, f"{self.method}: {self.policy}")

    def __str__(self) -> str:
        count, total = int(self.certified.sum()), self.certified.numel()
        return (
            f"{count} of {total} classes certified; largest bound {float(self.bound.max()):.3g}, method {self.method}, "
            f"reference {self.reference}, {self.policy}"
        )


def classification_tolerance(outputs: torch.Tensor) -> torch.Tensor:
    """Gamma: the largest less the second-largest entry of the last axis (arXiv 2305.10947); 0 for a tie, NaN for NaN."""
    if outputs.shape[-1] < 2:
        return torch.full(outputs.shape[:-1], torch.inf, dtype=outputs.dtype)
    top = outputs.topk(2, dim=-1).values
    gamma = top[..., 0] - top[..., 1]
    return torch.where(outputs.isnan().any(-1), torch.nan, gamma)


def settles(logits: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Whether z_c - z_j > d_c + d_j for the largest logit c and every other j, rounded outward; False for NaN."""
    chosen = logits.argmax(-1, keepdim=True)
    margin = logits.gather(-1, chosen) - logits
    margin = margin - 2.0**-52 * margin.abs()
    needed = bound.gather(-1, chosen) + bound
    needed = needed + 2.0**-51 * needed + 2.0**-1060
    is_chosen = torch.zeros_like(margin, dtype=torch.bool).scatter(-1, chosen, True)
    return ((margin > needed) | (is_chosen & torch.isfinite(bound))).all(-1)
