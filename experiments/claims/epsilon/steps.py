"""Adam's and RMSProp's steps in Keras's form, of any arithmetic that can add, subtract, multiply, divide and take roots."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

import fpsim

Array = Any


def of_format(fmt: str) -> SimpleNamespace:
    """Every operation rounded to the format once, by fpsim."""
    operations = {name: _rounded(getattr(fpsim, name), fmt) for name in ("add", "sub", "mul", "div", "sqrt")}
    return SimpleNamespace(**operations, value=lambda x: fpsim.round(np.asarray(x, np.float64), fmt))


def _rounded(function: Callable[..., Array], fmt: str) -> Callable[..., Array]:
    return lambda *operands: function(*np.broadcast_arrays(*operands), fmt=fmt)


def of_numpy() -> SimpleNamespace:
    """NumPy's float16, which rounds every operation once as well: nothing of fpsim."""
    return SimpleNamespace(
        add=np.add, sub=np.subtract, mul=np.multiply, div=np.divide, sqrt=np.sqrt,
        value=lambda x: np.asarray(x, np.float64).astype(np.float16),
    )  # fmt: skip


def weights(a: SimpleNamespace, optimizer: str, form: str, eps: float, lr: float, steps: int, gradients: Array) -> Array:
    """w after some steps from 0.5 with a constant gradient, for each gradient."""
    g, w = a.value(gradients), a.value(np.full(np.shape(gradients), 0.5))
    m = v = a.value(np.zeros(np.shape(gradients)))
    one, rate, small = a.value(1.0), a.value(lr), a.value(eps)
    first, second = a.value(0.9), a.value(0.999 if optimizer == "adam" else 0.9)
    for step in range(1, steps + 1):
        v = a.add(v, a.mul(a.sub(a.mul(g, g), v), a.sub(one, second)))
        moved = a.mul(g, rate)
        if optimizer == "adam":
            m = a.add(m, a.mul(a.sub(g, m), a.sub(one, first)))
            # Powers of 11-bit numbers up to the third are exact in float64.
            bias1, bias2 = (a.sub(one, a.value(float(beta) ** step)) for beta in (first, second))
            moved = a.mul(m, a.div(a.mul(rate, a.sqrt(bias2)), bias1))
        divisor = a.add(a.sqrt(v), small) if form == "sqrt(v) + eps" else a.sqrt(np.maximum(v, small))
        w = a.sub(w, a.div(moved, divisor))
    return w
