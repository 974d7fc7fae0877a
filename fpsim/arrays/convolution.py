"""Convolutions of arrays in one to three dimensions, and their two backward products, with any accumulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fpsim.arrays.products import require_countable
from fpsim.numbers.operands import as_array_like, operand
from fpsim.running.products import Summed, result_error
from fpsim.sums.convolutions import Products, forward_into, input_gradient_into, weight_gradient_into
from fpsim.sums.geometry import Geometry, five_axes
from fpsim.sums.observers.counters import Counters
from fpsim.sums.task import Draws, read_settings
from fpsim.theory.deviations import confidence_of


def conv(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    fmt: Any,
    accumulate: Any = None,
    rounding: Any = "nearest-even",
    seed: int | None = None,
    counters: Counters | None = None,
    error_bound: bool | float = False,
) -> Any:
    """The convolution (cross-correlation, as torch's) of x with weight, in one to three dimensions.

    Parameters
    ----------
    x : (images, channels, 1 to 3 axes), a NumPy array or a torch tensor on the CPU, of values of `fmt`.
    weight, bias : (outputs, channels / groups, kernel axes) and (outputs) or None, likewise.
    stride, padding, dilation : a whole number, or one for each axis. Padding is with zeros, which are multiplied like
        anything else: an infinite weight gives NaN there.
    fmt : as of `matmul`; of the parts that "bf16x3" multiplies, the weight's are left.
    accumulate : what `get_accumulator` takes; left out, "fp32". The terms are in row-major order of (channel, kernel
        position); the bias is added to the accumulator after the sum, in its format.
    rounding, seed : of every rounding; "stochastic" needs a seed.
    counters : a `Counters`, to which what the roundings do is added, as by `matmul`; zeros of the padding are terms too.
    error_bound : True, or a probability, returns (result, bound of its error) as `matmul` does.

    Returns
    -------
    (images, outputs, ...) of x's type and dtype. NaN, infinities and signs of zeros are what the additions give.

    Raises
    ------
    ValueError : shapes, groups or steps that do not fit, an element that is no value of `fmt`, unknown names.
    TypeError : arrays of integers, booleans or complex numbers, steps that are no whole numbers.
    """
    products, source, wrap = _first(x, "x", fmt, accumulate, rounding, seed, counters)
    factors = _other(weight, "weight", products, source)
    geometry = Geometry.of(np.shape(x), np.shape(weight), stride, padding, dilation, groups)
    added = None if bias is None else _other(bias, "bias", products, source)
    if added is not None:
        _require_shape(np.shape(bias), (geometry.outputs,), "bias")
    into = partial(forward_into, five_axes(source), five_axes(factors), bias=added)
    return _made(into, geometry.output_shape, geometry, source, products, wrap, error_bound)


def conv_input_gradient(
    gradient: Any,
    weight: Any,
    input_shape: tuple[int, ...],
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    fmt: Any,
    accumulate: Any = None,
    rounding: Any = "nearest-even",
    seed: int | None = None,
    counters: Counters | None = None,
    error_bound: bool | float = False,
) -> Any:
    """The gradient of the input of `conv`, of shape `input_shape`, from that of its output.

    One sum over (output channel, kernel position) for each element, row-major; kernel positions that meet no element of
    the gradient, between strides or outside, count as zeros. Otherwise as `conv`.
    """
    products, source, wrap = _first(gradient, "gradient", fmt, accumulate, rounding, seed, counters)
    factors = _other(weight, "weight", products, source)
    geometry = Geometry.of(tuple(input_shape), np.shape(weight), stride, padding, dilation, groups)
    _require_shape(np.shape(gradient), geometry.shown(geometry.output_shape), "gradient")
    into = partial(input_gradient_into, five_axes(source), five_axes(factors))
    return _made(into, geometry.input_shape, geometry, source, products, wrap, error_bound)


def conv_weight_gradient(
    gradient: Any,
    x: Any,
    weight_shape: tuple[int, ...],
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    fmt: Any,
    accumulate: Any = None,
    rounding: Any = "nearest-even",
    seed: int | None = None,
    counters: Counters | None = None,
    error_bound: bool | float = False,
) -> Any:
    """The gradient of the weight of `conv`, of shape `weight_shape`, from that of its output and x.

    One sum over (image, output position) for each element, row-major. Otherwise as `conv`. The gradient of the bias is
    ``sum(gradient, axis=(0, 2, ...))``.
    """
    products, source, wrap = _first(gradient, "gradient", fmt, accumulate, rounding, seed, counters)
    factors = _other(x, "x", products, source)
    geometry = Geometry.of(np.shape(x), tuple(weight_shape), stride, padding, dilation, groups)
    _require_shape(np.shape(gradient), geometry.shown(geometry.output_shape), "gradient")
    into = partial(weight_gradient_into, five_axes(source), five_axes(factors))
    return _made(into, geometry.weight_shape, geometry, source, products, wrap, error_bound)


@dataclass(frozen=True)
class _Bounding(Products):
    """Products that give bounds of their own errors instead of themselves."""

    confidence: float | None = None

    def joined(self, groups: int, rows: int, leaves: int, columns: int) -> bool:
        return False  # bounds are those of single products

    def product(
        self, left: np.ndarray, right: np.ndarray, out: np.ndarray, elements: tuple[int, int], addend: np.ndarray | None = None
    ) -> None:
        made = np.empty(out.shape, dtype=left.dtype)
        super().product(left, right, made, elements, addend)
        summed = Summed(self.task, left, right, Draws(self.key, *elements), confidence=self.confidence)
        out[...] = result_error(summed, made, None if addend is None else np.broadcast_to(addend, out.shape))


def _made(
    into: Callable[[np.ndarray, Geometry, Products], None], shape: tuple[int, ...], geometry: Geometry, like: np.ndarray,
    products: Products, wrap: Callable[[np.ndarray], Any], error_bound: bool | float,
) -> Any:  # fmt: skip
    """The result, and with error_bound its bounds: from the same sums made once more, without counters."""
    confidence = None if error_bound is False else confidence_of(error_bound)
    out = np.empty(shape, dtype=like.dtype)
    into(out, geometry, products)
    result = wrap(out.reshape(geometry.shown(shape)))
    if error_bound is False:
        return result
    bounds = np.empty(shape)
    into(bounds, geometry, _Bounding(products.task, products.key, confidence=confidence))
    return result, as_array_like(result, bounds.reshape(geometry.shown(shape)))


def _first(
    x: Any, name: str, fmt: Any, accumulate: Any, rounding: Any, seed: int | None, counters: Counters | None
) -> tuple[Products, np.ndarray, Callable[[np.ndarray], Any]]:
    """The operand that the result takes its type from, and the arithmetic."""
    products = Products(*read_settings(fmt, accumulate, rounding, seed, multiplies=True), counters)
    require_countable(products.task.accumulator, counters)
    return products, *operand(x, products.task.operand, name)


def _other(x: Any, name: str, products: Products, first: np.ndarray) -> np.ndarray:
    """Another operand in the first one's carrier: exact, because both hold values of one format that either holds."""
    return operand(x, products.task.operand, name)[0].astype(first.dtype, copy=False)


def _require_shape(shape: tuple[int, ...], wanted: tuple[int, ...], name: str) -> None:
    if tuple(shape) != wanted:
        raise ValueError(f"{name} has shape {tuple(shape)}, it must have {wanted}")
