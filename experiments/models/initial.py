"""Initial weights."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from experiments.draws import Draws
from experiments.models.dropout import Dropout

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)


def draw_weights(model: nn.Module, seed: int) -> None:
    """Weights and biases uniform within 1 / sqrt(inputs of a unit), as torch's layers have it; norms are ones and zeros.

    Embeddings are within 1 / sqrt(width). Raises NotImplementedError for parameters of other modules.
    """
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, Dropout):
                module.seed, module.purpose = seed, path
            for name, parameter in module.named_parameters(recurse=False):
                if isinstance(module, _NORMS):
                    parameter.fill_(float(name == "weight"))
                    continue
                weight = parameter if name == "position" else getattr(module, "weight", None)
                if weight is None:
                    raise NotImplementedError(f"no rule for the initial values of {path}.{name} ({type(module).__name__})")
                inputs = weight.shape[-1] if weight.dim() == 2 else math.prod(weight.shape[1:])
                draws = Draws(seed, f"{path}.{name}").uniform(*parameter.shape)
                parameter.copy_(torch.from_numpy(((2 * draws - 1) / math.sqrt(inputs)).astype(np.float32)))


def perturb(model: nn.Module, seed: int) -> None:
    """Move every weight by one ulp of float32, up or down: the control, which parts as any other noise makes it part."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            toward = np.where(Draws(seed, f"perturb {name}").uniform(*parameter.shape) < 0.5, -np.inf, np.inf)
            moved = np.nextafter(parameter.numpy(), toward.astype(np.float32))
            parameter.copy_(torch.from_numpy(moved))
