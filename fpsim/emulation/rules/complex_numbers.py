"""Operations on complex numbers: pairs of values of the format.

Elementwise functions are formulas of `machine/complex_functions.py`. Products of matrices are real ones of twice as many terms:
for every k first the product of the real parts, then that of the imaginary ones. Sums add parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.machine import complex_functions as functions, marks
from fpsim.emulation.machine.complex_functions import FUNCTIONS, Pair
from fpsim.emulation.machine.parts import COMPLEX64, parts_of
from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import RULES, Rule, register, register_complex
from fpsim.emulation.schemas import mapped, name_of, names, tensors_in

_aten = torch.ops.aten
_FLOAT32 = torch.float32


def _is_wide(values: Any) -> bool:
    """Whether these make complex128 or float64 results, which mean themselves."""
    tensors = tensors_in(values)
    wide = any(item.dim() and item.dtype in (torch.complex128, torch.float64) for item in tensors)
    return wide or not any(item.dtype in (COMPLEX64, _FLOAT32) for item in tensors)


def _pair(machine: Machine, value: Any) -> Pair:
    """An operand as real and imaginary part: of values of the format under "primitive", else in float64."""
    primitive = machine.arithmetic.primitive
    if isinstance(value, Tensor) and (value.dim() or value.dtype in (COMPLEX64, _FLOAT32)):
        if value.dtype is COMPLEX64:
            parts = parts_of(machine.operand(value)).detach().unbind(-1)
        else:
            real = machine.floating(value).detach()
            parts = real, machine.exact(torch.zeros_like(real))
        return (parts[0], parts[1]) if primitive else (parts[0].double(), parts[1].double())
    number = complex(value.item() if isinstance(value, Tensor) else value)
    scalars = [machine.scalar(part) for part in (number.real, number.imag)]
    if primitive:
        real, imaginary = (machine.exact(torch.tensor(part, dtype=_FLOAT32)) for part in scalars)
    else:
        real, imaginary = (torch.tensor(part, dtype=torch.float64) for part in scalars)
    return real, imaginary


def _evaluated(machine: Machine, formula: Callable[..., Any], *pairs: Any, **named: Pair) -> Tensor:
    """The formula of pairs, each part rounded once, or every operation under "primitive"."""
    if machine.arithmetic.primitive:
        with machine.dispatching():
            result = formula(functions.STEPS, *pairs, **named)
            if isinstance(result, Tensor):
                return result
            parts = torch.stack(torch.broadcast_tensors(*result), -1)
        return torch.view_as_complex(parts)
    result = formula(functions.wide(machine.arithmetic.rounding), *pairs, **named)
    if isinstance(result, Tensor):
        return machine.finish(result.contiguous())
    return machine.finish(torch.view_as_complex(torch.stack(torch.broadcast_tensors(*result), -1)))


def _elementwise(op: torch._ops.OpOverload) -> Rule:
    formula = FUNCTIONS[name_of(op)]

    def rule(machine: Machine, *args: Any, **kwargs: Any) -> Tensor:
        if _is_wide((*args, *kwargs.values())):
            return op(*args, **kwargs)
        if kwargs.pop("rounding_mode", None) is not None:
            raise machine.refuse("a quotient of complex numbers that is rounded to whole numbers")
        named = {key: _pair(machine, value) for key, value in kwargs.items() if value != 1}
        return _evaluated(machine, formula, *(_pair(machine, value) for value in args), **named)

    return rule


register_complex(FUNCTIONS, _elementwise)


def _power(op: torch._ops.OpOverload) -> Rule:
    def rule(machine: Machine, base: Any, exponent: Any) -> Tensor:
        if _is_wide((base, exponent)):
            return op(base, exponent)
        pair = _pair(machine, base)
        if not isinstance(exponent, Tensor) and exponent == int(exponent.real) and abs(exponent) <= 64:
            return _evaluated(machine, lambda f, z: functions.whole_power(f, z, int(exponent.real)), pair)
        if not isinstance(exponent, Tensor) and exponent in (0.5, -0.5):
            return _evaluated(machine, functions.sqrt if exponent == 0.5 else functions.rsqrt, pair)
        return _evaluated(machine, functions.power, pair, _pair(machine, exponent))

    return rule


register_complex(["pow"], _power)


@register(_aten.polar.default, family="complex")
def polar(machine: Machine, length: Tensor, turn: Tensor) -> Tensor:
    if _is_wide((length, turn)):
        return _aten.polar.default(length, turn)
    values = [machine.operand(item).detach() for item in (length, turn)]
    return _evaluated(machine, functions.polar, *(values if machine.arithmetic.primitive else [x.double() for x in values]))


@register(_aten.complex.default, family="complex")
def complex_of(machine: Machine, real: Tensor, imaginary: Tensor) -> Tensor:
    return machine.exact(_aten.complex.default(machine.operand(real), machine.operand(imaginary)))


# Products


def _copied(like: Tensor, values: Tensor) -> Tensor:
    """Other places of the same values: what is known of those holds here."""
    tag = marks.tag_on(like)
    return values if tag is None else marks.mark(values.contiguous(), tag)


def _left(machine: Machine, a: Tensor) -> Tensor:
    """(..., i, k) as (..., i, 2k): real and imaginary parts by turns."""
    parts = parts_of(machine.operand(a)).detach()
    return _copied(parts, parts.reshape(*parts.shape[:-2], 2 * parts.shape[-2]).clone())


def _right(machine: Machine, b: Tensor) -> Tensor:
    """(..., k, j) as (..., 2k, 2j): c + i d as the matrix of its product with (a, b): rows (c, d) and (-d, c)."""
    parts = parts_of(machine.operand(b)).detach()
    c, d = parts.unbind(-1)
    rows = torch.stack([torch.stack([c, d], -1), torch.stack([-d, c], -1)], -3)  # (..., 2, j, 2) for each k
    return _copied(parts, rows.reshape(*b.shape[:-2], 2 * b.shape[-2], 2 * b.shape[-1]))


def _addend(machine: Machine, c: Tensor, shape: tuple[int, ...]) -> Tensor:
    parts = parts_of(machine.operand(c)).detach()
    full = parts.expand(*shape, 2)
    return _copied(parts, full.reshape(*shape[:-1], 2 * shape[-1]).clone())


_AS_MATRICES = {"mv": "mm", "addmv": "addmm", "dot": "mm", "vdot": "mm"}


def _product(op: torch._ops.OpOverload) -> Rule | None:
    if any(argument.name == "out_dtype" for argument in op._schema.arguments):
        return None
    name = name_of(op)
    real = RULES[getattr(_aten, _AS_MATRICES.get(name, name)).default]

    def rule(machine: Machine, *tensors: Tensor, beta: Any = 1, alpha: Any = 1) -> Tensor:
        if any(item.dtype is not COMPLEX64 for item in tensors):
            return op(*tensors, **({"beta": beta, "alpha": alpha} if len(tensors) == 3 else {}))  # torch's own, or its error
        *addends, a, b = tensors
        factors = {key: _real_factor(machine, value) for key, value in (("beta", beta), ("alpha", alpha)) if value != 1}
        shape = op(*(item.to("meta") for item in tensors)).shape  # torch's own error for shapes that do not meet
        if name in ("dot", "vdot"):
            a, b = (a.conj() if name == "vdot" else a).unsqueeze(0), b.unsqueeze(1)
        elif name in ("mv", "addmv"):
            b = b.unsqueeze(1)
        matrix = (*shape, 1) if name in ("mv", "addmv") else tuple(shape)
        given = [_addend(machine, c.unsqueeze(-1) if name == "addmv" else c, matrix) for c in addends]
        result = real(machine, *given, _left(machine, a), _right(machine, b), **factors)
        return _copied(result, result.reshape(*shape, 2)).view(COMPLEX64).squeeze(-1)

    return rule


def _real_factor(machine: Machine, value: Any) -> float:
    if isinstance(value, complex) and value.imag != 0:
        raise machine.refuse("a product times a complex number: multiply by it apart")
    return value.real if isinstance(value, complex) else value


register_complex(["mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot"], _product)


# Sums, and what moves parts


#: What is linear in its tensors, and so done to the real and to the imaginary parts.
LINEAR = names(
    """
    sum mean cumsum index_put _index_put_impl _unsafe_masked_index_put_accumulate index_add scatter_add put trace col2im
    unfold_backward reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward replication_pad1d_backward
    replication_pad2d_backward replication_pad3d_backward
    """
)


def _apart(op: torch._ops.OpOverload) -> Rule:
    def rule(machine: Machine, *args: Any, dtype: Any = None, **kwargs: Any) -> Tensor:
        if dtype not in (None, COMPLEX64) or any(item.dtype is torch.complex128 for item in tensors_in(args)):
            return op(*args, **kwargs, **({} if dtype is None else {"dtype": dtype}))
        operands = mapped(lambda item: parts_of(machine.operand(item)) if item.dtype is COMPLEX64 else item, args)
        mixed = {id(item) for item in tensors_in(args) if item.dtype is COMPLEX64}

        def part(index: int) -> Tensor:
            def chosen(given: Any, operand: Any) -> Any:
                if isinstance(given, Tensor):
                    zero = index and given.is_floating_point()  # what is real has no imaginary part
                    return operand.select(-1, index) if id(given) in mixed else torch.zeros_like(given) if zero else given
                return type(given)(map(chosen, given, operand)) if isinstance(given, (list, tuple)) else given

            return machine.rules[op](machine, *map(chosen, args, operands), **kwargs)

        return machine.exact(torch.view_as_complex(torch.stack([part(0), part(1)], -1)))

    return rule


register_complex(LINEAR, _apart)


def _multiplied(op: torch._ops.OpOverload) -> Rule:
    """Products along an axis, in ascending order."""
    running = name_of(op) == "cumprod"

    def rule(machine: Machine, x: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
        if x.dtype is not COMPLEX64 or dtype not in (None, COMPLEX64):
            return op(x, *(() if dim is None else (dim,)), *((keepdim,) if keepdim else ()), dtype=dtype)
        if x.dim() == 0:
            return machine.operand(x).clone()
        x, axis = (x.reshape(-1), 0) if dim is None else (x, dim)

        def formula(f: Any, z: Pair) -> Pair:
            factors = list(zip(z[0].unbind(axis), z[1].unbind(axis), strict=True))
            if not factors:
                if running:
                    return z
                empty = z[0].sum(axis)
                return torch.ones_like(empty), torch.zeros_like(empty)
            products = [factors[0]]
            for factor in factors[1:]:
                products.append(functions.mul(f, products[-1], factor))
            if running:
                return torch.stack([a for a, _ in products], axis), torch.stack([b for _, b in products], axis)
            return products[-1]

        result = _evaluated(machine, formula, _pair(machine, x))
        return result.unsqueeze(axis) if keepdim and dim is not None else result

    return rule


register_complex(["prod", "cumprod"], _multiplied)


def _norm(op: torch._ops.OpOverload) -> Rule:
    """The root of the sum of the squares of all parts."""

    def rule(
        machine: Machine, x: Tensor, order: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
    ) -> Tensor:
        if order != 2 or dtype is not None or x.dtype is not COMPLEX64:
            raise machine.refuse("a norm of complex numbers that is not the root of a sum of squares: take it of their abs()")
        axes = range(x.dim()) if dim is None else ([dim] if isinstance(dim, int) else dim)
        places = [*(axis % x.dim() for axis in axes if x.dim()), x.dim()]
        result = machine.rules[op](machine, parts_of(machine.operand(x)), 2, places, keepdim)
        return result.squeeze(-1) if keepdim else result

    return rule


register_complex(["linalg_vector_norm"], _norm)


def _converted(op: torch._ops.OpOverload) -> Rule:
    def rule(machine: Machine, source: Tensor, *, dtype: Any = None, **kwargs: Any) -> Tensor:
        if source.dtype is torch.complex128:
            if dtype not in (COMPLEX64, _FLOAT32):
                return op(source, dtype=dtype, **kwargs)
            wide = source.resolve_conj() if dtype is COMPLEX64 else source.real
            return machine.finish(wide.clone())  # rounded once, not by complex64 first
        if source.dtype is torch.float64 and dtype is torch.complex128:
            return op(source, dtype=dtype, **kwargs)
        read = machine.operand(source) if source.is_complex() else machine.floating(source)
        return machine.exact(op(read, dtype=dtype, **kwargs))

    return rule


register_complex(["_to_copy"], _converted)


def _copies(op: torch._ops.OpOverload) -> Rule:
    def copy(machine: Machine, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        read = machine.operand(source) if source.is_complex() or source.dtype is _FLOAT32 else source
        if target.dtype is torch.complex128:
            return target.copy_(read)
        return machine.store(target, read.to(target.dtype, copy=True).expand(target.shape))

    return copy


register_complex(["copy_"], _copies)
