"""The probes that every machine is asked: sections of plain torch calls, recorded below autograd.

A section is a function that makes torch calls with operands from `Draw`. Adding a probe is a line in its section. What raises
on a machine (an operation that it lacks) is noted in the bundle and the rest goes on.
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
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh",
    "tanh", "asinh", "acosh", "atanh", "sigmoid", "erf", "erfc", "rsqrt", "sqrt", "reciprocal", "neg", "abs", "ceil",
    "floor", "trunc", "round",
)  # fmt: skip
_ACTIVATIONS = (F.relu, F.silu, F.gelu, F.softplus, F.mish, F.hardswish, F.leaky_relu, F.elu)
#: (m, k, n) of products.
SHAPES: tuple[tuple[int, int, int], ...]
SHAPES = ((16, 16, 8), (8, 64, 8), (33, 100, 17), (64, 64, 64), (1, 256, 1), (32, 512, 32), (5, 1000, 7))
#: Long sums, for which a GPU's library may split the terms.
GPU_SHAPES = ((8, 4096, 8), (128, 1024, 128))


class Probe:
    """What a section gets: operands, the recorder, and where to note what failed."""

    def __init__(self, device: torch.device, recorder: CallRecorder):
        self.device, self.recorder, self.draw = device, recorder, Draw(device)

    def __call__(self, label: str, function: Callable[..., Any], *operands: Any, **options: Any) -> None:
        """Record one function's calls on its operands under a label; what it raises is noted."""
        recorder = self.recorder
        recorder.label = label
        try:
            with recorder:
                function(*operands, **options)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            reason = str(error).splitlines()[0][:200]
            note = {"kind": "call", "section": recorder.section, "op": label, "place": ""}
            recorder.bundle.records.append(note | {"skipped": f"it raises here: {reason}"})


def conversions(probe: Probe) -> None:
    draw = probe.draw
    for dtype in HALVES:
        single = draw.near_midpoints(1, dtype, 4096)
        probe("", torch.Tensor.to, single, dtype)
        probe("", torch.Tensor.to, draw.every(dtype), torch.float32)
        double = single.double() * (1 + 2.0**-40)
        probe("", torch.Tensor.to, double[:8192], dtype)
        other = HALVES[1 - HALVES.index(dtype)]
        probe("", torch.Tensor.to, draw.every(dtype), other)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"):
        if hasattr(torch, name):
            single = torch.cat([draw.every(torch.bfloat16).float()[::7], draw.wide(2, 4096, dtype=torch.float32)])
            probe("", torch.Tensor.to, single, getattr(torch, name))
            codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(getattr(torch, name)).to(probe.device)
            probe("", torch.Tensor.to, codes, torch.float32)


def elementwise(probe: Probe) -> None:
    draw = probe.draw
    for dtype in _FLOATS:
        for kind in ("wide", "special"):
            a, b, c = (getattr(draw, kind)(seed, 2048, dtype=dtype) for seed in (1, 2, 3))
            for name in ("add", "sub", "mul", "div", "maximum", "minimum"):
                probe(kind, getattr(torch, name), a, b)
            probe(kind, torch.addcmul, a, b, c)
            probe(kind, torch.addcdiv, a, b, c)
            probe(kind, torch.lerp, a, b, c)


def unary(probe: Probe) -> None:
    """Every input of each function in 16 bits; in float32 the exactly specified ones."""
    draw = probe.draw
    for dtype in HALVES:
        x = draw.every(dtype)
        for name in _UNARY:
            probe("", getattr(torch, name), x)
        for function in _ACTIVATIONS:
            probe("", function, x)
        probe("tanh", F.gelu, x, approximate="tanh")
    single = draw.near_midpoints(3, torch.float16, 2048)
    for name in ("sqrt", "reciprocal", "neg", "abs", "round"):
        probe("", getattr(torch, name), single)


def products(probe: Probe) -> None:
    draw = probe.draw
    for flag, value in product_flags(probe.device):
        with flag_set(flag, value):
            for dtype in _FLOATS:
                for number, (m, k, n) in enumerate(SHAPES + (GPU_SHAPES if probe.device.type == "cuda" else ())):
                    a, b = draw.random(number, m, k, dtype=dtype), draw.random(100 + number, k, n, dtype=dtype)
                    probe("random", torch.matmul, a, b)
                    x, y = draw.cancelling(200 + number, m, k, n, dtype)
                    probe("cancelling", torch.matmul, x, y)
                    if (m, k, n) == (33, 100, 17):
                        probe("random, transposed", torch.matmul, a, b.T.contiguous().T)
                        probe("random, bias", torch.addmm, draw.random(7, n, dtype=dtype), a, b)
                        probe("cancelling, bias", torch.addmm, draw.random(7, n, dtype=dtype, scale=2.0**-12), x, y)
                        probe("cancelling, vector", torch.mv, x, y[:, 0].contiguous())
                        for i in range(8):
                            probe("cancelling, dot", torch.dot, x[i], y[:, i].contiguous())
                    if (m, k, n) == (8, 64, 8):
                        probe("random, batch", torch.bmm, torch.stack([a, -a]), torch.stack([b, b]))
                        probe("cancelling, batch", torch.bmm, torch.stack([x, -x]), torch.stack([y, y]))
                m, k, n = 24, 96, 16
                x, y = draw.wide(1, m, k, dtype=dtype), draw.wide(2, k, n, dtype=dtype)
                probe("wide", torch.matmul, x, y)
                x, y = draw.special(5, m, k, dtype=dtype), draw.special(6, k, n, dtype=dtype)
                probe("special", torch.matmul, x, y)


def sums(probe: Probe) -> None:
    draw = probe.draw
    for dtype in _FLOATS:
        for shape in ((1000,), (37, 130), (5, 4099)):
            x = draw.wide(1, *shape, dtype=dtype, spread=3)
            probe("all", torch.sum, x)
            probe("last dimension", torch.sum, x, -1)
            probe("mean", torch.mean, x, -1)
            if len(shape) == 2:
                probe("first dimension", torch.sum, x, 0)
        x = draw.random(2, 8, 256, dtype=dtype)
        probe("", torch.cumsum, x, -1)
        probe("", torch.var, x, -1)
        probe("", torch.linalg.vector_norm, x, 2, -1)


def normalizations(probe: Probe) -> None:
    draw = probe.draw
    for dtype in _FLOATS:
        x, weight = draw.random(1, 16, 96, dtype=dtype), draw.random(2, 96, dtype=dtype)
        image = draw.random(3, 4, 8, 6, 6, dtype=dtype)
        probe("", _forward_backward, F.softmax, x, dim=-1)
        probe("", _forward_backward, F.log_softmax, x, dim=-1)
        probe("", _forward_backward, _layer_norm, x, weight)
        probe("", _forward_backward, F.group_norm, image, num_groups=4)
        mean, variance = torch.zeros(8, device=probe.device, dtype=dtype), torch.ones(8, device=probe.device, dtype=dtype)
        for training in (True, False):
            label, state = "training" if training else "evaluation", (mean.clone(), variance.clone())
            probe(label, _forward_backward, _batch_norm, image, state=state, training=training)
        target = torch.arange(16, device=probe.device)
        probe("", _forward_backward, F.cross_entropy, x, target=target)


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
            probe("", _forward_backward, F.conv2d, x, weight, bias, **options)
        x = draw.random(5, 2, 4, 9, 9, dtype=dtype)
        probe("", _forward_backward, F.avg_pool2d, x, kernel_size=3)
        probe("", _forward_backward, F.max_pool2d, x, kernel_size=2)


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
                probe(f"{name}{', foreach' if foreach else ''}", _steps, draw, maker, {**options, "foreach": foreach}, dtype)


def scalars(probe: Probe) -> None:
    """Whether a Python number stays in float32 or is rounded to the tensor's dtype first."""
    draw = probe.draw
    cases: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "x + 0.3": lambda x: x + 0.3, "x - 0.3": lambda x: x - 0.3, "0.3 - x": lambda x: 0.3 - x, "x * 0.3": lambda x: x * 0.3,
        "x / 0.3": lambda x: x / 0.3, "0.3 / x": lambda x: 0.3 / x, "x ** 2": lambda x: x**2, "x ** 0.5": lambda x: x**0.5,
        "add(alpha=0.3)": lambda x: torch.add(x, x, alpha=0.3),
        "addcmul(value=0.3)": lambda x: torch.addcmul(x, x, x, value=0.3),
        "lerp(0.3)": lambda x: torch.lerp(x, x * 2, 0.3), "clamp(-0.3, 0.3)": lambda x: x.clamp(-0.3, 0.3),
    }  # fmt: skip
    for dtype in _FLOATS:
        x = draw.wide(1, 4096, dtype=dtype, spread=3)
        for label, function in cases.items():
            probe(label, function, x)


def _layer_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, weight.shape, weight, weight)


def _batch_norm(x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor], training: bool) -> torch.Tensor:
    return F.batch_norm(x, state[0], state[1], training=training)


def _forward_backward(function: Callable[..., torch.Tensor], *operands: torch.Tensor, **options: Any) -> None:
    leaves = [x.detach().clone().requires_grad_() for x in operands]
    out = function(*leaves, **options)
    seed = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=torch.float32).to(out.dtype).reshape(out.shape)
    out.backward(seed)


def _steps(draw: Draw, maker: Callable[..., Any], options: dict[str, Any], dtype: torch.dtype) -> None:
    parameters = [torch.nn.Parameter(draw.random(i, 60, dtype=dtype)) for i in range(2)]
    optimizer = maker(parameters, **options)
    for step in range(3):
        for i, parameter in enumerate(parameters):
            parameter.grad = draw.random(10 * step + i, 60, dtype=dtype)
        optimizer.step()


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
