"""Other elementwise operations: in fp32 where that rounds once, else in float64, then one rounding of each result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsim.arrays.elementary import BELOW, Below, is_negative, settle_flushing
from fpsim.emulation.direct import direct
from fpsim.emulation.machine.finishing import BLOCK
from fpsim.emulation.machine.marks import array_of
from fpsim.emulation.machine.portable import in_float64
from fpsim.emulation.machine.protocol import Machine, MaybeTensor
from fpsim.emulation.registry import SHORT, Rule, Short, register, register_functional
from fpsim.emulation.schemas import names, tensors_in
from fpsim.numbers.rounding import Rounding

_FLOAT32, _FLOAT64 = torch.float32, torch.float64
_COST = 32  # of a function of an element in float64, in multiply-adds


# Operations in fp32 that round once there


def narrow_rule(op: torch._ops.OpOverload) -> Rule:
    """An operation that is exact or rounds once in fp32 (a Python number may take part), then one rounding."""
    wide, narrow = wide_rule(op), direct(op)

    def compute(machine: Machine, *args: Any, **kwargs: Any) -> Any:
        if args[0].dtype is _FLOAT64:
            result = op(*machine.operands(args), **kwargs)
            if result.dtype is _FLOAT64:  # it means itself, and so do numbers beside it
                return result
        arithmetic = machine.arithmetic
        rounds_once = arithmetic.fast or _has_float(args) or _has_float(kwargs.values())
        if arithmetic.stochastic or arithmetic.primitive or not rounds_once:
            return wide(machine, *args, **kwargs)
        values = [machine.scalar(value) if isinstance(value, float) else machine.operands(value) for value in args]
        named = {
            key: machine.scalar(value) if isinstance(value, float) else machine.operands(value) for key, value in kwargs.items()
        }
        result = narrow(*values, **named)
        return machine.finish(result) if result.dtype is _FLOAT32 else result

    return compute


def _held_between_bounds(op: torch._ops.OpOverload) -> Short:
    """Of numbers that hold values of the format, those within bounds that are such too."""
    compute = direct(op)

    def within(machine: Machine, x: Tensor, *bounds: Any) -> MaybeTensor:
        arithmetic = machine.arithmetic
        if arithmetic.stochastic or arithmetic.primitive:
            return None
        return machine.finish(compute(x, *map(machine.constant, bounds)))

    return within


def _has_float(values: Iterable[Any]) -> bool:
    return any(type(value) is float for value in values)


NARROW = names(
    """
    clamp clamp_min clamp_max hardtanh threshold hardshrink leaky_relu softshrink round frac fmod reciprocal square
    hardtanh_backward leaky_relu_backward hardshrink_backward softshrink_backward _prelu_kernel
    native_dropout_backward
    """
)

# Elementary functions and formulas in float64


def wide_rule(op: torch._ops.OpOverload, scalars: bool = True) -> Rule:
    """The operation in float64 on widened operands, then one rounding; Python numbers are data unless told otherwise."""
    pointwise = torch.Tag.pointwise in op.tags and len(op._schema.returns) == 1
    on_wide = in_float64(op)

    def compute(machine: Machine, *args: Any, **kwargs: Any) -> Any:
        if machine.arithmetic.uniform and (not kwargs or all(type(value) is str for value in kwargs.values())):
            few = _few_widened(machine, args, scalars)  # what is most frequent, and costs least
            if few is not None:
                return _finished(machine, on_wide(*few, **kwargs))
        values = machine.operands(args)
        named = {key: machine.operands(value) for key, value in kwargs.items()}
        dtypes = {item.dtype for item in tensors_in((*values, *named.values()))}
        if _FLOAT32 not in dtypes:
            result = op(*values, **named)
            if _FLOAT32 not in {item.dtype for item in tensors_in((result,))}:
                return result
        elif _FLOAT64 in dtypes:
            result = op(*values, **named)
            return machine.finish(result) if isinstance(result, Tensor) and result.dtype is _FLOAT32 else result
        if pointwise:
            if len(dtypes) > 1 or _FLOAT32 not in dtypes:  # integers, as type promotion has them
                values = tuple(machine.floating(value) if isinstance(value, Tensor) else value for value in values)
            result = _by_blocks(machine, op, on_wide, values, named, scalars)
            if result is not None:
                return result
        result = on_wide(
            *(_widen(machine, value, scalars) for value in values),
            **{key: _widen(machine, value, scalars) for key, value in named.items()},
        )
        return _finished(machine, result)

    return compute


def _finished(machine: Machine, result: Any) -> Any:
    return machine.finish(result) if isinstance(result, Tensor) else tuple(machine.finish(item) for item in result)


_AS_THEY_ARE = frozenset((int, bool, str, type(None)))


def _few_widened(machine: Machine, args: tuple[Any, ...], scalars: bool) -> list[Any] | None:
    """Numbers and small tensors of values of the format, one at least, in float64; None if they are not that."""
    values = []
    has_tensor = False
    for value in args:
        if type(value) is float:
            value = machine.scalar(value) if scalars else value
        elif type(value) not in _AS_THEY_ARE:
            if (isinstance(value, Tensor) and value.numel() >= BLOCK) or not machine.holds(value):
                return None
            value, has_tensor = value.double(), True
        values.append(value)
    return values if has_tensor else None


def _by_blocks(
    machine: Machine, op: torch._ops.OpOverload, on_wide: Callable[..., Any], args: Any, kwargs: dict[str, Any], scalars: bool
) -> MaybeTensor:
    """A pointwise operation on large float32 tensors of one shape, block by block; None if they are not that.

    What depends on one value of a narrow format alone is looked up.
    """
    tensors = tensors_in((*args, *kwargs.values()))
    first = tensors[0]
    if first.numel() < BLOCK or any(
        item.dtype is not _FLOAT32 or item.shape != first.shape or not item.is_contiguous() for item in tensors
    ):
        return None
    flat = {id(item): item.detach().view(-1) for item in tensors}
    rest = [value if isinstance(value, Tensor) else _widen(machine, value, scalars) for value in args]
    named = {key: _widen(machine, value, scalars) for key, value in kwargs.items() if not isinstance(value, Tensor)}
    if len(named) < len(kwargs) or any(isinstance(value, (list, tuple)) for value in args):
        return None

    def on(part: Callable[[Tensor], Tensor]) -> np.ndarray:
        values = [part(flat[id(value)]) if isinstance(value, Tensor) else value for value in rest]
        return array_of(on_wide(*values, **named))

    if len(tensors) == 1:
        name = (op, repr([None if value is first else value for value in rest]), repr(sorted(named.items())))
        result = machine.look_up(name, lambda x: on(lambda _: torch.from_numpy(x)), first)
        if result is not None:
            return result
    return machine.compute(lambda i, j: on(lambda whole: whole[i:j].double()), first.shape, cost=_COST)


def _widen(machine: Machine, value: Any, scalars: bool) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.dtype is _FLOAT32 else value
    if isinstance(value, (list, tuple)):
        return type(value)(_widen(machine, item, scalars) for item in value)
    return machine.scalar(value) if scalars and type(value) is float else value


def elementary_rule(op: torch._ops.OpOverload) -> Rule:
    """As `wide_rule`, refused where float64's value does not settle the rounding."""
    wide = wide_rule(op)
    below = _BELOW.get(op._schema.name.split("::")[1])

    def compute(machine: Machine, *args: Any, **kwargs: Any) -> Any:
        rounding = machine.arithmetic.rounding
        if rounding in _UNSETTLED:
            raise machine.refuse(f"an elementary function has no proven rounding {str(rounding)!r}; to nearest it has")
        if below is not None and machine.arithmetic.fmt.enclosing.flush == "before":
            if machine.operand(args[0]).dtype is _FLOAT32:
                return _judged_exactly(machine, op, below, args, kwargs)
        return wide(machine, *args, **kwargs)

    return compute


#: Beside those of `fpsim.arrays.elementary`, of the operations here: x sigmoid(x) and the like are below x / 2 where x < 0.
_BELOW = {
    **BELOW,
    "silu": Below(0.5, where=is_negative),
    "gelu": Below(0.5, where=is_negative),
    "elu": Below(1.0, where=is_negative),
    "celu": Below(1.0, where=is_negative),
    "special_i1e": Below(0.5),
    "special_bessel_j1": Below(0.5),
}


def _judged_exactly(
    machine: Machine, op: torch._ops.OpOverload, below: Below, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """The operation in float64, for a format that flushes by exact values (with a factor, `elu` is alpha expm1(x))."""
    x = machine.operand(args[0]).double()
    value = op(x, *args[1:], **kwargs)
    factors = [factor for factor in (*args[1:], *kwargs.values()) if isinstance(factor, (int, float))]
    slope = below.slope * prod(factors) if op._schema.name == "aten::elu" else below.slope
    settle_flushing(replace(below, slope=slope), x.numpy(), value.numpy(), machine.arithmetic.fmt.enclosing)
    return machine.finish(value)


_UNSETTLED = (Rounding.TOWARD_ZERO, Rounding.UP, Rounding.DOWN, Rounding.ODD)

ELEMENTARY = names(
    """
    exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh sigmoid erf erfc
    erfinv lgamma digamma rsqrt pow atan2 hypot gelu silu mish softplus elu celu logit log_sigmoid_forward xlogy
    logaddexp logaddexp2 sinc special_entr special_ndtri special_erfcx special_log_ndtr i0 special_i0e special_i1
    special_i1e special_xlog1py igamma igammac mvlgamma special_airy_ai special_bessel_j0 special_bessel_j1
    special_bessel_y0 special_bessel_y1 special_modified_bessel_i0 special_modified_bessel_i1
    special_modified_bessel_k0 special_modified_bessel_k1 special_scaled_modified_bessel_k0
    special_scaled_modified_bessel_k1 special_spherical_bessel_j0 special_chebyshev_polynomial_t
    special_chebyshev_polynomial_u special_chebyshev_polynomial_v special_chebyshev_polynomial_w
    special_hermite_polynomial_h special_hermite_polynomial_he special_laguerre_polynomial_l
    special_legendre_polynomial_p special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u
    special_shifted_chebyshev_polynomial_v special_shifted_chebyshev_polynomial_w special_zeta polygamma float_power
    """
)

FORMULAS = names(
    """
    sigmoid_backward gelu_backward silu_backward mish_backward softplus_backward elu_backward
    log_sigmoid_backward logit_backward hardswish hardswish_backward hardsigmoid hardsigmoid_backward
    _prelu_kernel_backward glu glu_backward glu_jvp glu_backward_jvp remainder floor_divide heaviside deg2rad rad2deg
    ldexp linalg_cross angle _standard_gamma_grad _dirichlet_grad
    """
)


def _tanh_gradient_rule(op: torch._ops.OpOverload) -> Rule:
    wide = wide_rule(op)

    def tanh_gradient(machine: Machine, gradient: Tensor, result: Tensor) -> Tensor:
        gradient, result = machine.operands((gradient, result))
        slope = None if machine.arithmetic.stochastic else machine.tanh_gradient(gradient, result)
        return wide(machine, gradient, result) if slope is None else slope

    return tanh_gradient


register_functional("tanh_backward", "formula", _tanh_gradient_rule)
register_functional(NARROW, "elementwise", lambda op: (wide_rule if "decimals" in op._overloadname else narrow_rule)(op))
register_functional(ELEMENTARY, "elementary", elementary_rule)
register_functional(FORMULAS, "formula", wide_rule)
for _name in ("clamp", "clamp_min", "clamp_max", "hardtanh"):
    _op = getattr(torch.ops.aten, _name).default
    SHORT[id(_op)] = _held_between_bounds(_op)


@register(torch.ops.aten.polygamma_.default, family="elementary")
def polygamma_(machine: Machine, x: Tensor, n: int) -> Tensor:
    """Alone of its kind it takes the number first where it is functional."""
    return machine.write(x, machine.rules[torch.ops.aten.polygamma.default](machine, n, x))
