"""A certificate as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fpsim.emulation.certification.layers import Layer


def draw(layers: Sequence[Layer], title: str) -> Any:
    """Left: the bound of each module's results beside their size, on a logarithmic axis. Right: parts of the logits' bound."""
    from matplotlib.figure import Figure

    places = np.arange(len(layers))
    parts = np.array([layer.part for layer in layers])
    apart = bool(np.isfinite(parts).all())
    figure = Figure(figsize=(10 if apart else 6, 1.2 + 0.28 * max(4, len(layers))), layout="constrained")
    axes = figure.subplots(1, 2 if apart else 1, sharey=True, squeeze=False)[0]
    axes[0].plot([layer.largest_bound for layer in layers], places, "o-", label="largest bound")
    axes[0].plot([layer.mean_bound for layer in layers], places, "s-", label="mean bound")
    axes[0].plot([layer.mean_magnitude for layer in layers], places, ":", color="gray", label="mean magnitude")
    axes[0].set_xscale("log")
    axes[0].set_yticks(places, [layer.path or "(model)" for layer in layers], fontsize=8)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("|emulated - exact|")
    axes[0].legend(fontsize=8)
    if apart:
        axes[1].barh(places, 100 * parts / max(parts.sum(), np.finfo(float).tiny))
        axes[1].set_xlabel("part of the logits' bound (%)")
    figure.suptitle(title, fontsize=9)
    return figure
