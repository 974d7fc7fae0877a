"""Functions of complex numbers as formulas of real ones, each given the real operations that it is made of.

Under "kernel" those are float64's, by fpsim's own elementary functions, and each part of a result is rounded once; under
"primitive" they are torch's operations on values of the format, each of which rounds. A complex number is a pair of parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from fpsim.emulation.machine import portable
from fpsim.numbers.operations import odd_sum
from fpsim.numbers.rounding import Rounding

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]
_NAMES = ("exp", "expm1", "log", "log1p", "sin", "cos", "tan", "sinh", "cosh", "tanh", "asinh", "sqrt")

#: Operations of torch, which meet their rules.
STEPS = SimpleNamespace(add=torch.add, atan2=torch.atan2, **{name: getattr(torch, name) for name in _NAMES})


def wide(rounding: Rounding) -> Any:
    """Operations in float64; sums are rounded to odd, so that a sum of two products of values is rounded once afterwards."""

    def add(x: Tensor, y: Tensor) -> Tensor:
        return torch.from_numpy(odd_sum(x.numpy(), y.numpy(), rounding))

    functions = {name: portable.FUNCTIONS[name] for name in _NAMES if name != "sqrt"}
    return SimpleNamespace(add=add, sqrt=portable.sqrt, atan2=portable.PORTABLE["atan2"], **functions)


def add(f: Any, z: Pair, w: Pair, alpha: Pair | None = None) -> Pair:
    w = w if alpha is None else mul(f, w, alpha)
    return f.add(z[0], w[0]), f.add(z[1], w[1])


def sub(f: Any, z: Pair, w: Pair, alpha: Pair | None = None) -> Pair:
    return add(f, z, neg(w if alpha is None else mul(f, w, alpha)))


def rsub(f: Any, z: Pair, w: Pair, alpha: Pair | None = None) -> Pair:
    return add(f, w, neg(z if alpha is None else mul(f, z, alpha)))


def neg(z: Pair) -> Pair:
    return -z[0], -z[1]


def conj(z: Pair) -> Pair:
    return z[0], -z[1]


def mul(f: Any, z: Pair, w: Pair) -> Pair:
    (a, b), (c, d) = z, w
    return f.add(a * c, -(b * d)), f.add(a * d, b * c)


def div(f: Any, z: Pair, w: Pair) -> Pair:
    """z conj(w) / |w|^2; NaN where w is 0."""
    (a, b), (c, d) = z, w
    square = f.add(c * c, d * d)
    return f.add(a * c, b * d) / square, f.add(b * c, -(a * d)) / square


def reciprocal(f: Any, z: Pair) -> Pair:
    a, b = z
    square = f.add(a * a, b * b)
    return a / square, -(b / square)


def addcmul(f: Any, z: Pair, v: Pair, w: Pair, value: Pair | None = None) -> Pair:
    return add(f, z, mul(f, v, w), value)


def addcdiv(f: Any, z: Pair, v: Pair, w: Pair, value: Pair | None = None) -> Pair:
    return add(f, z, div(f, v, w), value)


def absolute(f: Any, z: Pair) -> Tensor:
    a, b = z
    infinite = a.isinf() | b.isinf()
    return torch.where(infinite, torch.full_like(a, math.inf), f.sqrt(f.add(a * a, b * b)))


def angle(f: Any, z: Pair) -> Tensor:
    return f.atan2(z[1], z[0])


def sgn(f: Any, z: Pair) -> Pair:
    """z / |z|, 0 where z is."""
    length = absolute(f, z)
    zero, nothing = length == 0, torch.zeros_like(length)
    return torch.where(zero, nothing, z[0] / length), torch.where(zero, nothing, z[1] / length)


def polar(f: Any, length: Tensor, turn: Tensor) -> Pair:
    return length * f.cos(turn), length * f.sin(turn)


def exp(f: Any, z: Pair) -> Pair:
    a, b = z
    size = f.exp(a)
    return size * f.cos(b), torch.where(b == 0, b, size * f.sin(b))


def expm1(f: Any, z: Pair) -> Pair:
    """(e^a - 1) cos b - 2 sin(b / 2)^2 and e^a sin b."""
    a, b = z
    half = f.sin(b / 2)
    return f.add(f.expm1(a) * f.cos(b), -(2 * (half * half))), torch.where(b == 0, b, f.exp(a) * f.sin(b))


def _log_of_length(f: Any, a: Tensor, b: Tensor) -> Tensor:
    """log |z|: near 1 from (a - 1)(a + 1) + b^2, of the larger part a, which keeps what |z|^2 cancels."""
    a, b = torch.maximum(a.abs(), b.abs()), torch.minimum(a.abs(), b.abs())
    near = f.add((a - 1) * (a + 1), b * b)
    far = f.log(absolute(f, (a, b)))
    return torch.where((near > -0.5) & (near < 1), f.log1p(near) / 2, far)


def log(f: Any, z: Pair) -> Pair:
    return _log_of_length(f, *z), angle(f, z)


def _log_to(base: float) -> Callable[[Any, Pair], Pair]:
    def function(f: Any, z: Pair) -> Pair:
        length, turn = log(f, z)
        return length / math.log(base), turn / math.log(base)

    return function


def log1p(f: Any, z: Pair) -> Pair:
    a, b = z
    near = f.add(a * (a + 2), b * b)
    moved = (a + 1, b)
    length = torch.where((near > -0.5) & (near < 1), f.log1p(near) / 2, f.log(absolute(f, moved)))
    return length, angle(f, moved)


def sqrt(f: Any, z: Pair) -> Pair:
    """The root whose real part is not negative: from the part that |a| + |z| does not cancel."""
    a, b = z
    first = f.sqrt(f.add(a.abs(), absolute(f, z)) / 2)
    zero = first == 0
    second = torch.where(zero, torch.zeros_like(b), b.abs() / (2 * first))
    left = a < 0
    return torch.where(left, second, first), torch.where(left, first, second).copysign(b)


def rsqrt(f: Any, z: Pair) -> Pair:
    return reciprocal(f, sqrt(f, z))


def sin(f: Any, z: Pair) -> Pair:
    a, b = z
    return f.sin(a) * f.cosh(b), f.cos(a) * f.sinh(b)


def cos(f: Any, z: Pair) -> Pair:
    a, b = z
    return f.cos(a) * f.cosh(b), -(f.sin(a) * f.sinh(b))


def sinh(f: Any, z: Pair) -> Pair:
    a, b = z
    return f.sinh(a) * f.cos(b), f.cosh(a) * f.sin(b)


def cosh(f: Any, z: Pair) -> Pair:
    a, b = z
    return f.cosh(a) * f.cos(b), f.sinh(a) * f.sin(b)


def tanh(f: Any, z: Pair) -> Pair:
    """With t = tanh a and v = tan b: (t (1 + v^2) + i v / cosh(a)^2) / (1 + t^2 v^2)."""
    t, v, size = f.tanh(z[0]), f.tan(z[1]), f.cosh(z[0])
    square = v * v
    below = 1 + t * t * square
    return t * (1 + square) / below, v / size / size / below


def tan(f: Any, z: Pair) -> Pair:
    """-i tanh(i z)."""
    x, y = tanh(f, (-z[1], z[0]))
    return y, -x


def _roots(f: Any, z: Pair) -> tuple[Pair, Pair]:
    """The roots of 1 - z and 1 + z (W. Kahan, Branch cuts for complex elementary functions, 1987)."""
    a, b = z
    return sqrt(f, (1 - a, -b)), sqrt(f, (1 + a, b))


def asin(f: Any, z: Pair) -> Pair:
    left, right = _roots(f, z)
    return f.atan2(z[0], mul(f, left, right)[0]), f.asinh(mul(f, conj(left), right)[1])


def acos(f: Any, z: Pair) -> Pair:
    left, right = _roots(f, z)
    return 2 * f.atan2(left[0], right[0]), f.asinh(mul(f, conj(right), left)[1])


def asinh(f: Any, z: Pair) -> Pair:
    """-i asin(i z)."""
    x, y = asin(f, (-z[1], z[0]))
    return y, -x


def acosh(f: Any, z: Pair) -> Pair:
    left, right = sqrt(f, (z[0] - 1, z[1])), sqrt(f, (z[0] + 1, z[1]))
    return f.asinh(mul(f, conj(left), right)[0]), 2 * f.atan2(left[1], right[0])


def atanh(f: Any, z: Pair) -> Pair:
    a, b = z
    square = b * b
    below = f.add((1 - a) * (1 - a), square)
    return f.log1p(4 * a / below) / 4, f.atan2(2 * b, f.add((1 - a) * (1 + a), -square)) / 2


def atan(f: Any, z: Pair) -> Pair:
    """-i atanh(i z)."""
    x, y = atanh(f, (-z[1], z[0]))
    return y, -x


def exp2(f: Any, z: Pair) -> Pair:
    return exp(f, (z[0] * math.log(2), z[1] * math.log(2)))


def lerp(f: Any, z: Pair, w: Pair, weight: Pair) -> Pair:
    return add(f, z, mul(f, weight, sub(f, w, z)))


def sigmoid(f: Any, z: Pair) -> Pair:
    size, turn = exp(f, neg(z))
    return reciprocal(f, (1 + size, turn))


def sigmoid_backward(f: Any, gradient: Pair, y: Pair) -> Pair:
    return mul(f, gradient, conj(mul(f, (1 - y[0], -y[1]), y)))


def tanh_backward(f: Any, gradient: Pair, y: Pair) -> Pair:
    square = mul(f, y, y)
    return mul(f, gradient, conj((1 - square[0], -square[1])))


def power(f: Any, z: Pair, w: Pair) -> Pair:
    """e^(w log z), 0 where z is 0 and the real part of w is positive, 1 where w is 0."""
    result = exp(f, mul(f, w, log(f, z)))
    zero, one = (z[0] == 0) & (z[1] == 0) & (w[0] > 0), (w[0] == 0) & (w[1] == 0)
    real = torch.where(one, torch.ones_like(result[0]), torch.where(zero, torch.zeros_like(result[0]), result[0]))
    return real, torch.where(one | zero, torch.zeros_like(result[1]), result[1])


def whole_power(f: Any, z: Pair, exponent: int) -> Pair:
    """z^n by squaring."""
    result: Pair | None = None
    rest, base = abs(exponent), z
    while rest:
        if rest & 1:
            result = base if result is None else mul(f, result, base)
        rest >>= 1
        base = mul(f, base, base) if rest else base
    if result is None:
        return torch.ones_like(z[0]), torch.zeros_like(z[1])
    return reciprocal(f, result) if exponent < 0 else result


#: By the name of torch's operation.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": add, "sub": sub, "rsub": rsub, "mul": mul, "div": div, "reciprocal": reciprocal, "addcmul": addcmul,
    "addcdiv": addcdiv, "abs": absolute, "angle": angle, "sgn": sgn, "exp": exp, "expm1": expm1, "log": log,
    "log2": _log_to(2.0), "log10": _log_to(10.0), "log1p": log1p, "sqrt": sqrt, "rsqrt": rsqrt, "sin": sin, "cos": cos,
    "tan": tan, "sinh": sinh, "cosh": cosh, "tanh": tanh, "sigmoid": sigmoid, "sigmoid_backward": sigmoid_backward,
    "tanh_backward": tanh_backward, "asin": asin, "acos": acos, "atan": atan, "asinh": asinh, "acosh": acosh, "atanh": atanh,
    "exp2": exp2, "lerp": lerp,
}  # fmt: skip
