"""Rows of matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch

from fpsim.emulation.certification.norms import convolution_norm, matrix_norm
from fpsim.emulation.certification.single import SINGLE_FROM, SINGLE_TO, product_above, product_near
from fpsim.emulation.certification.slopes import Operand, Slope, linear, scaled
from fpsim.emulation.certification.table import Call, Products, multiplied, register

_aten = torch.ops.aten
_Multiply = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def bilinear(a: Operand, b: Operand, multiply: _Multiply, terms: int) -> list[Slope]:
    """a^ b^ - a b = (a^ - a) b + a^ (b^ - b): the exact values of b, the emulated ones of a."""
    if b.radius is None:
        first = scaled(b.reference, b.reference, multiply, terms)
    else:
        exact = Operand(b.reference, b.reference, b.radius)
        first = scaled(exact.low, exact.high, multiply, terms)
    if a.spread is None:
        second = scaled(a.value, a.value, lambda t, w: multiply(w, t), terms)
    else:
        emulated = Operand(a.value, a.value, a.spread)
        second = scaled(emulated.low, emulated.high, lambda t, w: multiply(w, t), terms)
    return [first, second]


def _of_sums(sums: Products) -> list[Slope]:
    """The slopes of both factors; forwards in float32 where products are long."""
    a, b = sums.factors
    first, second = bilinear(a, b, sums.multiply, sums.terms)
    if sums.norm is not None and b.radius is None:
        norm = sums.norm
        first = replace(first, norm=lambda: norm(b.reference))
    if sums.terms < SINGLE_FROM:
        return [first, second]
    first = replace(first, forward=lambda t: product_above(sums, t, b.reference_magnitude))
    second = replace(second, forward=lambda t: product_above(sums, a.magnitude, t))
    if sums.reach is not None and sums.terms <= SINGLE_TO:
        if b.radius is None:
            first = replace(first, change=lambda e: product_near(sums, e, b.reference))
        if a.spread is None:
            second = replace(second, change=lambda e: product_near(sums, a.value, e))
    return [first, second]


def slopes_of_products(products: Callable[[Call], Products]) -> Callable[[Call], Sequence[Slope]]:
    """The slopes of a row whose sums are these."""

    def slopes(call: Call) -> Sequence[Slope]:
        sums = products(call)
        of_sums = _of_sums(sums)
        if sums.addend is None:
            return of_sums
        assert call.result is not None
        shape, addend = call.result.shape, linear(lambda t: sums.spread_addend(t).expand(shape))
        return [addend, *of_sums] if call.operands[0] is sums.addend else [*of_sums, addend]

    return slopes


def _register(op: torch._ops.OpOverload, family: str, products: Callable[[Call], Products]) -> None:
    register(op, family, slopes_of_products(products), kind="accumulated", cost=multiplied, products=products)


def _matrix(multiply: _Multiply, addend: bool = False) -> Callable[[Call], Products]:
    def products(call: Call) -> Products:
        for factor in ("alpha", "beta"):
            if call.kwargs.get(factor, 1) != 1:
                raise call.refuse(f"{factor} = {call.kwargs[factor]}; certification knows products with factors of 1 only")
        left, right = call.operands[-2:]
        first = call.operands[0] if addend else None
        return Products(
            multiply, (left, right), left.value.shape[-1], first, matrices=_pair,
            norm=matrix_norm if multiply is torch.mm else None, reach=_rows_reach if multiply in _MATRICES else None,
        )  # fmt: skip

    return products


_MATRICES = (torch.mm, torch.bmm)


def _rows_reach(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    largest = torch.maximum(a.amax(-1, keepdim=True), -a.amin(-1, keepdim=True))
    return largest, b.abs().sum(-2, keepdim=True).amax(-1, keepdim=True)


def _images_reach(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    lines = a.flatten(1)
    largest = torch.maximum(lines.amax(1), -lines.amin(1))
    return largest.reshape(-1, *(1 for _ in a.shape[1:])), b.abs().flatten(1).sum(1).amax()


def _pair(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrices of a product of matrices, vectors or batches."""
    return (a, b) if a.dim() == 3 else (a.reshape(-1, a.shape[-1]), b.reshape(b.shape[0], -1))


_register(_aten.mm.default, "matmul", _matrix(torch.mm))
_register(_aten.bmm.default, "matmul", _matrix(torch.bmm))
_register(_aten.mv.default, "matmul", _matrix(torch.mv))
_register(_aten.dot.default, "matmul", _matrix(torch.dot))
_register(_aten.addmm.default, "matmul", _matrix(torch.mm, addend=True))
_register(_aten.baddbmm.default, "matmul", _matrix(torch.bmm, addend=True))
_register(_aten.addmv.default, "matmul", _matrix(torch.mv, addend=True))


def _convolution(call: Call) -> Products:
    x, weight, *bias = call.operands
    geometry: tuple[Any, ...] = tuple(call.args[3:])
    transposed, groups = geometry[3], geometry[5]
    terms = prod(weight.value.shape[2:]) * (weight.value.shape[0] // groups if transposed else weight.value.shape[1])

    def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return _aten.convolution.default(a, b, None, *geometry)

    def along_channels(t: torch.Tensor) -> torch.Tensor:
        return t.reshape(-1, *(1 for _ in weight.value.shape[2:]))

    def pair(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One product for each image and group: (channels out, k) @ (k, places), k over (channel, height, width)."""
        stride, padding, dilation = geometry[:3]
        columns = torch.nn.functional.unfold(a, b.shape[2:], dilation, padding, stride)
        rows = b.reshape(groups, b.shape[0] // groups, -1)
        return rows.expand(a.shape[0], *rows.shape), columns.reshape(a.shape[0], groups, -1, columns.shape[-1])

    def directly(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """By oneDNN, which emulation switches off for models: its direct algorithm."""
        stride, padding, dilation = geometry[:3]
        return _aten.mkldnn_convolution.default(a.contiguous(), b.contiguous(), None, padding, stride, dilation, groups)

    plain = not transposed and weight.value.dim() == 4 and x.value.dim() == 4
    return Products(
        multiply, (x, weight), terms, bias[0] if bias else None, along_channels, matrices=pair if plain else None,
        norm=convolution_norm if groups == 1 else None, reach=_images_reach if plain else None,
        single=directly if plain and _has_direct_convolutions() else None,
    )  # fmt: skip


def _has_direct_convolutions() -> bool:
    """Whether oneDNN is there and multiplies float32 as it is."""
    precision = torch.backends.mkldnn.conv.fp32_precision  # type: ignore[attr-defined]
    return torch.backends.mkldnn.is_available() and precision in ("none", "ieee")


_register(_aten.convolution.default, "convolution", _convolution)
