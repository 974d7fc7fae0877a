"""Calls of every function on arrays, with every accumulator and mode: what `fpsim warm` runs to have kernels compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fpsim
import fpsim.bounds
import fpsim.hardware
from fpsim.arrays.elementary import NAMES
from fpsim.numbers.modes import Rounding

_RANDOM = np.random.default_rng(0)


def _normal(*shape: int) -> Any:
    return fpsim.round(_RANDOM.normal(size=shape).astype(np.float32), "e4m3")


X, Y, IMAGE, WEIGHT, GRADIENT = _normal(8, 40), _normal(40, 40), _normal(2, 3, 9, 9), _normal(4, 3, 3, 3), _normal(2, 4, 7, 7)
POSITIVE = fpsim.round(_RANDOM.uniform(1, 2, (8, 40)).astype(np.float32), "e4m3")

ACCUMULATORS = (
    "fp16", "fp16:pairwise", "fp16:blocked(8)", "fp16:blocked(8)->fp32", "fp16:lanes(4)", "fp16:lanes(4,pairwise)",
    "fp16:split(3)", "fp16:fma", "fp16:exact-products", "fp16:kahan", "fp16:neumaier", "bf16", "bf16:fma", "fp32",
    "fp32:pairwise", "exact", "native",
)  # fmt: skip


def _modes() -> Iterator[dict[str, Any]]:
    for mode in Rounding:
        yield {"rounding": mode, "seed": 1 if mode is Rounding.STOCHASTIC else None}


def roundings() -> None:
    for fmt in ("fp16", "bf16", "e5m2", "e4m3", "tf32", "fp32", "e2m1", "int8"):
        for how in _modes():
            fpsim.round(X.astype(np.float64), fmt, **how)
            fpsim.round(X, fmt, **how)
    fpsim.round(np.ones(1 << 20, np.float32), "fp16")


def operations() -> None:
    for fmt in ("fp16", "bf16", "tf32", "fp32"):
        for how in _modes():
            for operation in (fpsim.add, fpsim.sub, fpsim.mul, fpsim.div):
                operation(X, POSITIVE, fmt, **how)
            fpsim.fma(X, POSITIVE, X, fmt, **how)
            fpsim.sqrt(POSITIVE, fmt, **how)


def codes() -> None:
    for fmt in fpsim.FORMATS:
        values = fpsim.round(POSITIVE.astype(np.float64), fmt)
        fpsim.decode(fpsim.encode(values, fmt), fmt)
        fpsim.ulp(values, fmt), fpsim.next_up(values, fmt), fpsim.next_down(values, fmt)


def _each_accumulator(function: Callable[..., Any]) -> None:
    for accumulate in ACCUMULATORS:
        function(fmt="fp16", accumulate=accumulate)
    for how in _modes():
        function(fmt="fp16", accumulate="fp16", **how)
    function(fmt="fp16", accumulate="fp16", error_bound=True)


def products() -> None:
    _each_accumulator(functools.partial(fpsim.matmul, X, Y))
    _each_accumulator(functools.partial(fpsim.dot, X[0], X[1]))
    for accumulate in ("fp16", "fp32", "fp16:pairwise"):
        fpsim.matmul(X, Y, fmt="fp16", accumulate=accumulate, counters=fpsim.Counters())
    for accumulate in ("fp16", "fp32", "fp16:pairwise", "exact"):
        fpsim.matmul(X[None].repeat(3, 0), Y[None].repeat(3, 0), fmt="fp16", accumulate=accumulate)
        fpsim.matmul(X, Y, fmt="fp16", accumulate=accumulate, addend=np.ones(40, np.float32))


def sums() -> None:
    for axis in (0, 1, None):
        _each_accumulator(functools.partial(fpsim.sum, Y, axis=axis))
        fpsim.mean(Y, axis=axis, fmt="fp16", accumulate="fp16")
        fpsim.sum(Y, axis=axis, fmt="fp16", accumulate="fp16", counters=fpsim.Counters())
    for axis in (0, 1):
        fpsim.cumsum(Y, axis, fmt="fp16", accumulate="fp16")


def convolutions() -> None:
    _each_accumulator(functools.partial(fpsim.conv, IMAGE, WEIGHT))
    _each_accumulator(functools.partial(fpsim.conv_input_gradient, GRADIENT, WEIGHT, IMAGE.shape))
    _each_accumulator(functools.partial(fpsim.conv_weight_gradient, GRADIENT, IMAGE, WEIGHT.shape))


def functions() -> None:
    for name in NAMES:
        for fmt in ("fp16", "bf16", "fp32"):
            getattr(fpsim, name)(np.minimum(POSITIVE, 1) if name in ("acos", "asin", "atanh") else POSITIVE, fmt)


def hardware() -> None:
    for name, conversion in fpsim.hardware.CONVERSIONS.items():
        fpsim.hardware.convert(fpsim.encode(np.ones(8), conversion.source), name, conversion.roundings[0])
    fpsim.hardware.product(X, Y, unit="h100", fmt="fp16")
    fpsim.hardware.quantize_blocks(np.ones((32, 64), np.float32), kind="mxf8f6f4", fmt="e4m3fn")


def units() -> None:
    for name, unit in fpsim.hardware.UNITS.items():
        for instruction in unit.instructions:
            for fmt in instruction.operands:
                fpsim.matmul(fpsim.round(X, fmt), fpsim.round(Y, fmt), fmt=fmt, accumulate=name)


def bounds() -> None:
    fpsim.bounds.matmul(X, Y, fmt="fp16", accumulate="fp16")
    fpsim.bounds.accumulation_bound("fp16", "fp16", 100)
    fpsim.bounds.probabilistic_bound("fp16", "fp16", 100)
