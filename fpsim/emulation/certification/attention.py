"""Attention in a trace: one kernel of the run, four steps here, three of which keep more than the format.

    scores         Q K^T, as the accumulator has them
    masked         factor * scores + mask, in float64
    probabilities  softmax, rounded as the second product reads them: to the format, or to fp32
    output         probabilities V, one rounding to the format
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fpsim.emulation.certification.normalization import _softmax_cost, _softmax_slopes
from fpsim.emulation.certification.products import slopes_of_products
from fpsim.emulation.certification.slopes import Slope, linear, upwards
from fpsim.emulation.certification.table import Call, LibraryArithmetic, Products, multiplied, register
from fpsim.emulation.errors import UnsupportedOp
from fpsim.emulation.machine.machine import FormatMachine
from fpsim.emulation.machine.policy import Policy, mixed_products
from fpsim.emulation.operations import ATTENTION, repeated
from fpsim.emulation.rules.attention import attend
from fpsim.numbers.formats import FP32, FP64, Format, joined
from fpsim.numbers.rounding import Rounding

_Tensor = torch.Tensor


def scores(query: _Tensor, key: _Tensor) -> _Tensor:
    return query @ repeated(key, query).transpose(-2, -1)


def masked(products: _Tensor, factor: float, mask: _Tensor | None, is_causal: bool) -> _Tensor:
    products = products * factor
    if mask is not None:
        products = products.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else products + mask
    if is_causal:
        products = products.masked_fill(~torch.ones(products.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    return products


def probabilities(products: _Tensor, dim: int, wide: bool) -> _Tensor:
    return torch._safe_softmax(products, dim)


def output(weights: _Tensor, value: _Tensor, wide: bool) -> _Tensor:
    return weights @ repeated(value, weights)


def record_steps(
    machine: FormatMachine, step: Callable[[Any, Sequence[Any], _Tensor], _Tensor], args: Sequence[Any]
) -> tuple[_Tensor, ...]:
    """Run the kernel and write down its four steps by `step(op, args, result)`; what the operation returns."""
    query, key, value, mask, kept, dropout_p, is_causal, scale, wide, _ = args
    if kept is not None:
        raise UnsupportedOp(f"{ATTENTION}: dropout draws at random; certify a model in eval mode")
    machine.op = ATTENTION
    machine.select(ATTENTION, args, {})
    with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
        out, plain, read, rows = attend(
            machine, query, key, value, mask, kept, dropout_p, is_causal, scale, wide, True
        )
        made = torch.from_numpy(rows.scores.reshape(rows.shape))
        added = None if rows.mask is None else torch.from_numpy(np.ascontiguousarray(rows.mask))  # as it was read
        sums = masked(made.double(), rows.factor, added, is_causal)
    products = step(scores, (query, key), made)
    products = step(masked, (products, scale, mask, is_causal), sums)
    products = step(probabilities, (products, -1, wide), read)
    step(output, (products, value, wide), out)
    return out, plain, read


# Their rows


def _held(call: Call, policy: Policy) -> tuple[Policy, Format]:
    accumulator = policy.accumulator
    return policy, FP64 if accumulator.kind == "exact" else accumulator.promoted or accumulator.format


def _in_float64(call: Call, policy: Policy) -> tuple[Policy, Format]:
    return replace(policy, fmt=FP64, rounding=Rounding.NEAREST_EVEN), FP64


def _read(call: Call, policy: Policy) -> tuple[Policy, Format]:
    return (replace(policy, fmt=FP32, rounding=Rounding.NEAREST_EVEN), FP32) if call.args[2] else (policy, policy.fmt)


def _beside_fp32(call: Call, policy: Policy) -> tuple[Policy, Format]:
    if not call.args[2]:
        return policy, policy.fmt
    operands = joined(FP32, policy.fmt)
    return replace(mixed_products(policy, operands), fmt=operands), policy.fmt


def _products(multiply: Callable[[_Tensor, _Tensor], _Tensor], transposed: bool) -> Callable[[Call], Products]:
    def products(call: Call) -> Products:
        left, right = call.operands

        def matrices(a: _Tensor, b: _Tensor) -> tuple[_Tensor, _Tensor]:
            b = repeated(b, a)
            return a, (b.transpose(-2, -1) if transposed else b)

        return Products(multiply, (left, right), left.value.shape[-1], matrices=matrices)

    return products


def _score_cost(call: Call, unit: LibraryArithmetic) -> _Tensor:
    """A float32 run may multiply query and key by a root of the scale first: three roundings more in each product."""
    total = _score_products(call).magnitudes()
    return upwards(multiplied(call, unit) + total * (16 * unit.roundoff), 2)


def _masked_slopes(call: Call) -> Sequence[Slope]:
    products, factor, mask, is_causal = call.args
    kept = torch.ones(products.value.shape[-2:], dtype=torch.bool)
    kept = kept.tril() if is_causal else kept
    if isinstance(mask, _Tensor):
        kept = kept & mask
    weights = kept.double() * factor
    size = weights.abs()
    slopes = [Slope(lambda t: t * weights, lambda t: t * size)]
    if len(call.operands) > 1:
        seen, shape = kept.double(), products.value.shape
        slopes.append(linear(lambda t: t.expand(shape) * seen))
    return slopes


def _masked_cost(call: Call, unit: LibraryArithmetic) -> _Tensor:
    """A product with the scale, which is a number in fp32 or the library's own, and a sum."""
    assert call.result is not None
    scaled = upwards(call.operands[0].magnitude * abs(call.args[1]))
    error = scaled * (8 * unit.with_scalar.roundoff) + (call.result.abs() + scaled) * (2 * unit.roundoff)
    return upwards(error) + unit.underflow


_score_products = _products(scores, True)
_output_products = _products(lambda a, b: output(a, b, False), False)

register(
    scores, "attention", slopes_of_products(_score_products), kind="accumulated", cost=_score_cost, products=_score_products,
    arithmetic=_held,
)  # fmt: skip
register(masked, "attention", _masked_slopes, cost=_masked_cost, arithmetic=_in_float64)
register(probabilities, "attention", _softmax_slopes, cost=_softmax_cost, arithmetic=_read)
register(
    output, "attention", slopes_of_products(_output_products), kind="accumulated", cost=multiplied, products=_output_products,
    arithmetic=_beside_fp32,
)  # fmt: skip
