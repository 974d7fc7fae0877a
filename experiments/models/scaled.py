"""Linear layers whose products read narrow numbers, each tensor scaled to their range (arXiv 2209.05433)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fpsim


@dataclass(frozen=True)
class Products:
    """What the products of linear layers read and how they add; weights, results and all else stay in float32.

    forward, backward   the formats of inputs and weights, and of gradients
    sums        "fp32", in sequence, or a hardware unit that takes these formats: "h100" adds fp8 products with 14 bits
    promoted    sums of so many terms are added in fp32, in sequence; 0: never
    scaled      multiply each tensor by the largest power of two that leaves it within the format's range; divide results again
    """

    forward: str
    backward: str
    sums: str = "fp32"
    promoted: int = 0
    scaled: bool = True

    def narrow(self, tensor: Tensor, fmt: str) -> tuple[np.ndarray, int]:
        """Values of the format, and the exponent of the scale that they bear. Beyond the range they saturate; NaN stays."""
        values = tensor.detach().numpy()
        largest = float(np.abs(values).max(initial=0.0))
        limit = fpsim.get_format(fmt).max_finite
        exponent = 0
        if self.scaled and 0 < largest < math.inf:
            exponent = math.frexp(limit)[1] - math.frexp(largest)[1]
            exponent -= math.ldexp(largest, exponent) > limit
        return fpsim.round(np.clip(np.ldexp(values, exponent), -limit, limit), fmt), exponent

    def multiply(self, a: tuple[np.ndarray, int], b: tuple[np.ndarray, int], formats: tuple[str, str]) -> Tensor:
        """(m, k) by (k, n), added as asked; float32."""
        left, right = np.ascontiguousarray(a[0]), np.ascontiguousarray(b[0])
        step = self.promoted or left.shape[1]
        total = np.zeros((left.shape[0], right.shape[1]), np.float32)
        for start in range(0, left.shape[1], step):
            total = total + self._sums(left[:, start : start + step], right[start : start + step], formats)
        return torch.from_numpy(np.ldexp(total, -(a[1] + b[1])))

    def _sums(self, left: np.ndarray, right: np.ndarray, formats: tuple[str, str]) -> np.ndarray:
        if self.sums == "fp32":  # exact products: no more than 16 bits
            return fpsim.matmul(left, right, fmt="fp32", accumulate="fp32")
        return fpsim.hardware.product(left, right, unit=self.sums, fmt=formats)


class _Product(torch.autograd.Function):
    """inputs @ weight.T, and its gradients: each product reads narrow numbers."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, products: Products) -> Tensor:
        x, w = (products.narrow(tensor, products.forward) for tensor in (inputs, weight))
        ctx.products, ctx.operands = products, (x, w)
        return products.multiply(x, (w[0].T, w[1]), (products.forward, products.forward))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        products, (x, w) = ctx.products, ctx.operands
        g = products.narrow(gradient, products.backward)
        formats = (products.backward, products.forward)
        of_inputs = products.multiply(g, w, formats) if ctx.needs_input_grad[0] else None
        return of_inputs, products.multiply((g[0].T, g[1]), x, formats), None


class ScaledLinear(nn.Linear):
    """A linear layer of (n, k) inputs; the bias is added in float32."""

    def __init__(self, layer: nn.Linear, products: Products):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.load_state_dict(layer.state_dict())
        self.products = products

    def forward(self, x: Tensor) -> Tensor:
        found = _Product.apply(x, self.weight, self.products)
        return found if self.bias is None else found + self.bias


def with_products(model: nn.Sequential, products: Products) -> nn.Sequential:
    """The model with every linear layer replaced."""
    return nn.Sequential(*(ScaledLinear(layer, products) if isinstance(layer, nn.Linear) else layer for layer in model))
