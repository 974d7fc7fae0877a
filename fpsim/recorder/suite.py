"""The probes that every machine is asked: sections of plain torch calls, recorded below autograd.

A section is a function that makes torch calls with operands from `Draw`. Adding a probe is a line in its section. What raises on
a machine (an operation that it lacks) is noted in the bundle and the rest goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .calls import CallRecorder
from .environment import flag_set, product_flags
from .operands import HALVES, Draw

_FLOATS = (*HALVES, torch.float32)
_UNARY = (
    "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh sigmoid erf erfc rsqrt sqrt "
    "reciprocal neg abs ceil floor trunc round"
).split()
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "softplus": F.softplus,
    "mish": F.mish, "hardswish": F.hardswish, "leaky_relu": F.leaky_relu, "elu": F.elu,
}  # fmt: skip
#: (m, k, n) of products.
SHAPES = ((16, 16, 8), (8, 64, 8), (33, 100, 17), (64, 64, 64), (1, 256, 1), (32, 512, 32), (5, 1000, 7))


class Probe:
    """What a section gets: operands, the recorder, and where to note what failed."""

    def __init__(self, device: torch.device, recorder: CallRecorder):
        self.device, self.recorder, self.draw = device, recorder, Draw(device)

    def __call__(self, label: str, function: Callable[[], Any]) -> None:
        """Record one function's calls under a label; what it raises is noted."""
        recorder = self.recorder
        recorder.label = label
        try:
            with recorder:
                function()
        except (RuntimeError, NotImplementedError, ValueError) as error:
            reason = str(error).splitlines()[0][:200]
            note = {"kind": "call", "section": recorder.section, "op": label, "place": "", "skipped": f"it raises here: {reason}"}
            recorder.bundle.records.append(note)


def conversions(probe: Probe) -> None:
    draw = probe.draw
    for dtype in HALVES:
        single = draw.near_midpoints(1, dtype, 4096)
        probe("", lambda x=single, d=dtype: x.to(d))
        probe("", lambda x=draw.every(dtype): x.to(torch.float32))
        double = single.double() * (1 + 2.0**-40)
        probe("", lambda x=double[:8192], d=dtype: x.to(d))
        other = HALVES[1 - HALVES.index(dtype)]
        probe("", lambda x=draw.every(dtype), d=other: x.to(d))
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"):
        dtype = getattr(torch, name, None)
        if dtype is not None:
            single = torch.cat([draw.every(torch.bfloat16).float()[::7], draw.wide(2, 4096, dtype=torch.float32)])
            probe("", lambda x=single, d=dtype: x.to(d))
            codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype).to(probe.device)
            probe("", lambda x=codes: x.to(torch.float32))


def elementwise(probe: Probe) -> None:
    draw = probe.draw
    for dtype in _FLOATS:
        for kind in ("wide", "special"):
            a, b, c = (getattr(draw, kind)(seed, 2048, dtype=dtype) for seed in (1, 2, 3))
            for name in ("add", "sub", "mul", "div", "maximum", "minimum"):
                probe(kind, lambda f=getattr(torch, name), x=a, y=b: f(x, y))
            probe(kind, lambda x=a, y=b, z=c: torch.addcmul(x, y, z))
            probe(kind, lambda x=a, y=b, z=c: torch.addcdiv(x, y, z))
            probe(kind, lambda x=a, y=b, z=c: torch.lerp(x, y, z))


def unary(probe: Probe) -> None:
    """Every input of each function in 16 bits; in float32 the exactly specified ones."""
    draw = probe.draw
    for dtype in HALVES:
        x = draw.every(dtype)
        for name in _UNARY:
            probe("", lambda f=getattr(torch, name), x=x: f(x))
        for function in _ACTIVATIONS.values():
            probe("", lambda f=function, x=x: f(x))
    single = draw.near_midpoints(3, torch.float16, 2048)
    for name in ("sqrt", "reciprocal", "neg", "abs", "round"):
        probe("", lambda f=getattr(torch, name), x=single: f(x))


def products(probe: Probe) -> None:
    draw = probe.draw
    for flag, value in product_flags(probe.device):
        with flag_set(flag, value):
            for dtype in _FLOATS:
                for number, (m, k, n) in enumerate(SHAPES):
                    a, b = draw.random(number, m, k, dtype=dtype), draw.random(100 + number, k, n, dtype=dtype)
                    probe("random", lambda a=a, b=b: a @ b)
                    if (m, k, n) == (33, 100, 17):
                        c = draw.random(7, n, dtype=dtype)
                        probe("random, transposed", lambda a=a, b=b.T.contiguous().T: a @ b)
                        probe("random, bias", lambda a=a, b=b, c=c: torch.addmm(c, a, b))
                        probe("random, vector", lambda a=a, b=b: torch.mv(a, b[:, 0].contiguous()))
                        probe("random, dot", lambda a=a, b=b: torch.dot(a[0], b[:, 0].contiguous()))
                    if (m, k, n) == (8, 64, 8):
                        batch = draw.random(8, 3, m, k, dtype=dtype), draw.random(9, 3, k, n, dtype=dtype)
                        probe("random, batch", lambda pair=batch: torch.bmm(*pair))
                m, k, n = 24, 96, 16
                x, y = draw.wide(1, m, k, dtype=dtype), draw.wide(2, k, n, dtype=dtype)
                probe("wide", lambda a=x, b=y: a @ b)
                x, y = draw.cancelling(3, m, k, dtype, 1), draw.cancelling(4, k, n, dtype, 0).abs()
                probe("cancelling", lambda a=x, b=y: a @ b)
                x, y = draw.special(5, m, k, dtype=dtype), draw.special(6, k, n, dtype=dtype)
                probe("special", lambda a=x, b=y: a @ b)


def sums(probe: Probe) -> None:
    draw = probe.draw
    for dtype in _FLOATS:
        for shape in ((1000,), (37, 130), (5, 4099)):
            x = draw.wide(1, *shape, dtype=dtype, spread=3)
            probe("all", lambda x=x: x.sum())
            probe("last dimension", lambda x=x: x.sum(-1))
            probe("mean", lambda x=x: x.mean(-1))
            if len(shape) == 2:
                probe("first dimension", lambda x=x: x.sum(0))
        x = draw.random(2, 8, 256, dtype=dtype)
        probe("", lambda x=x: x.cumsum(-1))
        probe("", lambda x=x: x.var(-1))
        probe("", lambda x=x: torch.linalg.vector_norm(x, dim=-1))


def normalizations(probe: Probe) -> None:
    draw = probe.draw
    for dtype in _FLOATS:
        x, weight = draw.random(1, 16, 96, dtype=dtype), draw.random(2, 96, dtype=dtype)
        image = draw.random(3, 4, 8, 6, 6, dtype=dtype)
        probe("", _forward_backward(lambda x: F.softmax(x, -1), x))
        probe("", _forward_backward(lambda x: F.log_softmax(x, -1), x))
        probe("", _forward_backward(lambda x, w: F.layer_norm(x, (96,), w, w), x, weight))
        probe("", _forward_backward(lambda x: F.group_norm(x, 4), image))
        mean, variance = torch.zeros(8, device=probe.device, dtype=dtype), torch.ones(8, device=probe.device, dtype=dtype)
        for training in (True, False):
            state = mean.clone(), variance.clone()
            probe(
                "training" if training else "evaluation",
                _forward_backward(lambda x, s=state, t=training: F.batch_norm(x, *s, training=t), image),
            )
        target = torch.arange(16, device=probe.device)
        probe("", _forward_backward(lambda x, t=target: F.cross_entropy(x, t), x))


def convolutions(probe: Probe) -> None:
    draw = probe.draw
    for dtype in _FLOATS:
        cases: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
            ((2, 3, 8, 8), (4, 3, 3, 3), {"padding": 1}),
            ((1, 8, 7, 7), (6, 8, 1, 1), {}),
            ((2, 4, 9, 9), (4, 2, 3, 3), {"stride": 2, "groups": 2}),
        )
        for number, (shape, kernel, options) in enumerate(cases):
            x, weight = draw.random(number, *shape, dtype=dtype), draw.random(10 + number, *kernel, dtype=dtype)
            bias = draw.random(20 + number, kernel[0], dtype=dtype)
            probe("", _forward_backward(lambda x, w, b, o=options: F.conv2d(x, w, b, **o), x, weight, bias))
        x = draw.random(5, 2, 4, 9, 9, dtype=dtype)
        probe("", _forward_backward(lambda x: F.avg_pool2d(x, 3), x))
        probe("", _forward_backward(lambda x: F.max_pool2d(x, 2), x))


def optimizers(probe: Probe) -> None:
    draw = probe.draw
    makers: tuple[tuple[str, Callable[..., torch.optim.Optimizer], dict[str, Any]], ...] = (
        ("SGD", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
        ("Adam", torch.optim.Adam, {"lr": 1e-2}),
        ("AdamW", torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
        ("RMSprop", torch.optim.RMSprop, {"lr": 1e-2}),
    )
    for dtype in _FLOATS:
        for name, maker, options in makers:
            for foreach in (False, True):
                probe(f"{name}{', foreach' if foreach else ''}", _steps(draw, maker, {**options, "foreach": foreach}, dtype))


def scalars(probe: Probe) -> None:
    """Whether a Python number stays in float32 or is rounded to the tensor's dtype first."""
    draw = probe.draw
    cases: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "x + 0.3": lambda x: x + 0.3, "x - 0.3": lambda x: x - 0.3, "0.3 - x": lambda x: 0.3 - x, "x * 0.3": lambda x: x * 0.3,
        "x / 0.3": lambda x: x / 0.3, "0.3 / x": lambda x: 0.3 / x, "x ** 2": lambda x: x**2, "x ** 0.5": lambda x: x**0.5,
        "add(alpha=0.3)": lambda x: torch.add(x, x, alpha=0.3), "addcmul(value=0.3)": lambda x: torch.addcmul(x, x, x, value=0.3),
        "lerp(0.3)": lambda x: torch.lerp(x, x * 2, 0.3), "clamp(-0.3, 0.3)": lambda x: x.clamp(-0.3, 0.3),
    }  # fmt: skip
    for dtype in _FLOATS:
        x = draw.wide(1, 4096, dtype=dtype, spread=3)
        for label, function in cases.items():
            probe(label, lambda f=function, x=x: f(x))


def _forward_backward(function: Callable[..., torch.Tensor], *operands: torch.Tensor) -> Callable[[], None]:
    def call() -> None:
        leaves = [x.detach().clone().requires_grad_() for x in operands]
        out = function(*leaves)
        seed = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=torch.float32).to(out.dtype).reshape(out.shape)
        out.backward(seed)

    return call


def _steps(draw: Draw, maker: Callable[..., Any], options: dict[str, Any], dtype: torch.dtype) -> Callable[[], None]:
    parameters = [torch.nn.Parameter(draw.random(i, 60, dtype=dtype)) for i in range(2)]
    gradients = [[draw.random(10 * step + i, 60, dtype=dtype) for i in range(2)] for step in range(3)]

    def call() -> None:
        optimizer = maker(parameters, **options)
        for given in gradients:
            for parameter, gradient in zip(parameters, given, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()

    return call


SECTIONS: dict[str, Callable[[Probe], None]] = {
    "conversions": conversions,
    "elementwise": elementwise,
    "unary": unary,
    "scalars": scalars,
    "products": products,
    "sums": sums,
    "normalizations": normalizations,
    "convolutions": convolutions,
    "optimizers": optimizers,
}
