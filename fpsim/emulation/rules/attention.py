"""Attention as one kernel, forward and backward: what tensor cores do between two matrix products stays wide.

    scores         S = Q K^T, as the accumulator has them: nothing rounds them to the format
    probabilities  P = softmax(factor S + mask), in float64 in a fixed order; rows that are masked out give zeros
    output         P~ V through the accumulator, one rounding to the format

P~ is P (after dropout: times what is kept, over 1 - p) as the second product reads it: rounded to the format, as tensor cores
need it; or, `wide`, rounded to fp32 to nearest even, as torch's math backend has it. Backward, of a gradient G,

    dV = P~^T G,   dP = G V^T as the accumulator has it,   dS = P (dP - sum(P dP)) in float64, with P in fp32,
    dQ = factor (dS~ K),   dK = factor (dS~^T Q),   the mask's: dS, rounded to the format

where dS~ is dS rounded like P~, and a factor is applied to the accumulated sum before its one rounding. The forward pass keeps
P (in fp32) and P~, so that the backward pass draws nothing anew. Where heads of queries share a head of keys, a gradient of
keys or values is one sum over (head, query), in that order.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from fpsim.backend import threads
from fpsim.backend.numba import softmax as kernels
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.engine import accumulated_products, products
from fpsim.emulation.machine.finishing import by_rows
from fpsim.emulation.machine.limits import in_fp32
from fpsim.emulation.machine.protocol import Machine, MaybeTensor
from fpsim.emulation.operations import ATTENTION, ATTENTION_BACKWARD
from fpsim.emulation.registry import register
from fpsim.emulation.rules.matmul import by_library, multiplies_natively
from fpsim.numbers.formats import FP32, Format, joined

_aten = torch.ops.aten
_FLOAT32 = torch.float32
_COST = 24  # of a score's exponential, masks and sums, in multiply-adds


def default_scale(query: Tensor) -> float:
    """1 / sqrt(channels)."""
    return query.shape[-1] ** -0.5 if query.shape[-1] else float("inf")


def _stacked(heads: Tensor, groups: int) -> Tensor:
    """(..., heads, rows, columns) as (pairs, rows of all the heads of a group, columns)."""
    *outer, rows, columns = heads.shape
    return heads.reshape(prod(outer) // groups, groups * rows, columns)


def _array(tensor: Tensor) -> np.ndarray:
    return marks.array_of(tensor.detach())


def _multiply(machine: Machine, left: Tensor, right: Tensor) -> np.ndarray:
    """The products of two stacks of values of the format, as the accumulator has them."""
    if multiplies_natively(machine):
        return _array(by_library(_aten.bmm.default, left.detach(), right.detach()))
    return accumulated_products(machine, machine.sum_of(left, right), _array(left), _array(right))


def _multiply_and_round(machine: Machine, left: Tensor, right: Tensor, factor: float = 1.0, wide: bool = False) -> Tensor:
    """factor times the accumulated products, rounded once, in row-major order. `wide`: fp32 numbers on the left."""
    if multiplies_natively(machine):
        return _scaled(machine, _array(by_library(_aten.bmm.default, left.detach(), right.detach())), factor)
    if not wide and factor != 1:
        return _scaled(machine, _multiply(machine, left, right), factor)
    task = machine.arithmetic.product_task.of_operands(_fp32_operands(machine)) if wide else machine.sum_of(left, right)
    if factor == 1:
        return machine.exact(torch.from_numpy(np.ascontiguousarray(products(machine, task, _array(left), _array(right)))))
    return _scaled(machine, accumulated_products(machine, task, _array(left), _array(right)), factor)


def _scaled(machine: Machine, accumulated: np.ndarray, factor: float) -> Tensor:
    """Exact before the rounding where the accumulator and the factor have 24 bits at most."""
    with np.errstate(all="ignore"):
        values = accumulated.astype(np.float64, order="C")
        if factor != 1:
            values *= factor
    return machine.finish(torch.from_numpy(values))


def _fp32_operands(machine: Machine) -> Format:
    """The format of fp32 probabilities beside what the machine reads; refused where a unit takes none."""
    operands = joined(FP32, machine.arithmetic.product_task.operand)
    try:
        machine.arithmetic.product_task.accumulator.require_operands(operands)
    except ValueError as error:
        raise machine.refuse(
            f"the math backend keeps probabilities in fp32, and {error}; leave out sdpa_kernel(SDPBackend.MATH)"
        ) from None
    return operands


class _Rows:
    """The lines of scores, (..., heads, queries, keys) in row-major order, and what is added to them or leaves them out."""

    def __init__(self, scores: np.ndarray, shape: tuple[int, ...], mask: MaybeTensor, is_causal: bool, factor: float):
        self.scores = scores.reshape(prod(shape[:-1]), shape[-1])
        self.shape, self.factor, self.is_causal = shape, factor, is_causal
        self.mask: np.ndarray | None = None
        if mask is not None:
            values = _array(mask)
            if values.dtype == bool:
                values = np.where(values, np.float32(0), np.float32(-np.inf))
            self.mask = np.broadcast_to(values, shape)
        self.logsumexp = np.empty(len(self.scores))  # of each line, once its probabilities are made

    def probabilities(self, rows: slice, out: np.ndarray, kept: np.ndarray) -> None:
        """out = the probabilities of some of the lines, float64; `kept` too, float32, unless it has no elements."""
        numbers = np.arange(rows.start, rows.stop)
        queries, keys = self.shape[-2:]
        is_masked = self.mask is not None
        if self.mask is not None:
            out[...] = self.mask[np.unravel_index(numbers, self.shape[:-1])]
        seen = np.minimum(numbers % queries + 1, keys) if self.is_causal else np.full(len(numbers), keys)
        kernels.attention_weights(out, self.scores[rows], self.factor, is_masked, seen, kept, self.logsumexp[rows])


class _Dropout:
    """What is kept of the probabilities' lines, over 1 - p; the quotient 1 / (1 - p) is an fp32 number."""

    def __init__(self, kept: MaybeTensor, dropout_p: float, keys: int):
        self.kept = None if kept is None else _array(kept.detach().float().contiguous()).reshape(-1, keys)
        self.factor = in_fp32(1 / (1 - dropout_p)) if dropout_p < 1 else 0.0

    def apply(self, rows: slice, values: np.ndarray) -> np.ndarray:
        """Float64 where anything is dropped; else the values as they are."""
        if self.kept is None:
            return values
        with np.errstate(all="ignore"):
            return values.astype(np.float64) * (self.kept[rows] * self.factor)


def _probabilities(machine: Machine, rows: _Rows, dropout: _Dropout, wide: bool, keep: bool) -> tuple[Tensor, Tensor]:
    """(P in fp32 where it is to be kept or is what is read, P~)."""
    shape, keys = rows.shape, rows.shape[-1]
    plain = torch.empty(shape if keep or wide else (0,), dtype=_FLOAT32)
    lines = _array(plain).reshape(-1, max(keys, 1))
    if not rows.scores.size:
        return plain, machine.exact(torch.empty(shape, dtype=_FLOAT32))

    def compute(some: slice, out: np.ndarray) -> None:
        rows.probabilities(some, out, lines[some])
        if dropout.kept is not None:
            out[...] = dropout.apply(some, out)

    if not wide:
        return plain, machine.compute(by_rows(compute, keys), shape, keys, _COST)
    read = torch.empty(shape, dtype=_FLOAT32)
    target = _array(read).reshape(-1, keys)
    values = by_rows(compute, keys)

    def part(first: int, last: int) -> None:
        step = max(1, (1 << 14) // keys)
        for start in range(first, last, step):
            stop = min(start + step, last)
            target[start:stop] = values(start * keys, stop * keys).reshape(-1, keys)

    threads.run(part, threads.parts(len(target), _COST * target.size))
    return plain, read


def _scores(machine: Machine, query: Tensor, key: Tensor) -> tuple[np.ndarray, tuple[int, ...]]:
    """(scores as the accumulator has them, their shape with all dimensions)."""
    groups = _groups(query, key)
    products = _multiply(machine, _stacked(query, groups), _stacked(key, 1).transpose(1, 2))
    return np.ascontiguousarray(products), (*query.shape[:-1], key.shape[-2])


def _groups(query: Tensor, key: Tensor) -> int:
    """How many heads of queries share one head of keys."""
    return query.shape[-3] // key.shape[-3] if query.dim() > 2 and key.shape[-3] else 1


def attend(
    machine: Machine, query: Tensor, key: Tensor, value: Tensor, mask: MaybeTensor, kept: MaybeTensor, dropout_p: float,
    is_causal: bool, scale: float, wide: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, _Rows]:  # fmt: skip
    """What `attention` returns, P~ among it in any case, and the lines of scores that it comes from."""
    machine.whole()
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        shapes = ", ".join(str(tuple(item.shape)) for item in (query, key, value))
        raise RuntimeError(machine.message(f"query, key and value of shapes {shapes} do not fit together"))
    wide = wide and not machine.has_factors
    query, key, value = map(machine.factor, (query, key, value))
    mask = None if mask is None else machine.operand(mask)
    scores, shape = _scores(machine, query, key)
    rows = _Rows(scores, shape, mask, is_causal, machine.scalar(scale))
    probabilities, read = _probabilities(machine, rows, _Dropout(kept, dropout_p, max(shape[-1], 1)), wide, keep)
    multiplied = read if wide else machine.factor(read)
    out = _multiply_and_round(machine, _stacked(multiplied, _groups(query, key)), _stacked(value, 1), wide=wide)
    return out.view(*query.shape[:-1], value.shape[-1]), probabilities, read, rows


@register(ATTENTION, family="attention")
def attention(
    machine: Machine, query: Tensor, key: Tensor, value: Tensor, mask: MaybeTensor, kept: MaybeTensor, dropout_p: float,
    is_causal: bool, scale: float, wide: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(output, P in fp32, P~): (..., heads, queries, channels); empty P and P~ where they are not to be kept.

    key and value are (..., heads of keys, keys, channels) with the same leading dimensions; mask, boolean or added, and `kept`,
    1 for what dropout keeps, broadcast to (..., heads, queries, keys).
    """
    out, probabilities, read, _ = attend(
        machine, query, key, value, mask, kept, dropout_p, is_causal, scale, wide, keep
    )
    if query.dim() == 4 and out.shape == query.shape and not query.is_contiguous() and not wide and kept is None:
        out = machine.exact(torch.empty_like(query).copy_(out))  # as torch's kernel leaves it
    if not keep:
        return out, torch.empty(0), torch.empty(0)
    return out, probabilities, read


@register(ATTENTION_BACKWARD, family="attention")
def attention_backward(
    machine: Machine, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, kept: MaybeTensor, probabilities: Tensor,
    read: Tensor, dropout_p: float, scale: float, wide: bool, of_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key, value and, broadcast to the scores, the mask (empty where it is not asked for)."""
    machine.whole()
    wide = wide and not machine.has_factors
    gradient, query, key, value = map(machine.factor, (gradient, query, key, value))
    groups, factor, keys = _groups(query, key), machine.scalar(scale), key.shape[-2]
    stacked = _stacked(gradient, groups)
    read = read if wide else machine.factor(read)
    of_value = _multiply_and_round(machine, _stacked(read, groups).transpose(1, 2), stacked, wide=wide)
    change = np.ascontiguousarray(_multiply(machine, stacked, _stacked(value, 1).transpose(1, 2))).reshape(-1, max(keys, 1))
    dropout = _Dropout(kept, dropout_p, max(keys, 1))
    lines = _array(probabilities.contiguous()).reshape(-1, max(keys, 1))

    def slopes(some: slice, out: np.ndarray) -> None:
        kernels.softmax_gradient(dropout.apply(some, change[some]), lines[some], kernels.SOFTMAX, out)

    rounded = None
    if probabilities.numel() == 0:
        of_scores = rounded = machine.exact(torch.zeros(probabilities.shape))
    elif wide:
        of_scores = torch.empty(probabilities.shape, dtype=_FLOAT32)
        out = _array(of_scores).reshape(-1, keys)
        values = by_rows(slopes, keys)
        threads.run(
            lambda i, j: np.copyto(out[i:j], values(i * keys, j * keys).reshape(-1, keys), casting="same_kind"),
            threads.parts(len(out), _COST * out.size),
        )
        if of_mask:
            rounded = machine.compute(by_rows(slopes, keys), probabilities.shape, keys, _COST)
    else:
        of_scores = rounded = machine.compute(by_rows(slopes, keys), probabilities.shape, keys, _COST)
    rows = _stacked(of_scores if wide else machine.factor(of_scores), groups)
    of_query = _multiply_and_round(machine, rows, _stacked(key, 1), factor, wide)
    of_key = _multiply_and_round(machine, rows.transpose(1, 2), _stacked(query, groups), factor, wide)
    assert rounded is not None or not of_mask
    return (
        of_query.view(query.shape), of_key.view(key.shape), of_value.view(value.shape),
        rounded if of_mask and rounded is not None else torch.empty(0),
    )  # fmt: skip


# torch's own kernel for the CPU, where it is called by its name


@register(_aten._scaled_dot_product_flash_attention_for_cpu.default, family="attention")
def flash_attention(
    machine: Machine, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *,
    attn_mask: MaybeTensor = None, scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output, and the scores' logsumexp, which stays wide."""
    if query.dtype is not _FLOAT32:
        op = _aten._scaled_dot_product_flash_attention_for_cpu.default
        return op(*machine.operands((query, key, value)), dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
    scale = default_scale(query) if scale is None else scale
    out, _, _, rows = attend(machine, query, key, value, attn_mask, None, 0.0, is_causal, scale, False, False)
    return out, torch.from_numpy(rows.logsumexp.reshape(query.shape[:-1])).float()


@register(_aten._scaled_dot_product_flash_attention_for_cpu_backward.default, family="attention")
def flash_attention_backward(
    machine: Machine, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor,
    dropout_p: float, is_causal: bool, *, attn_mask: MaybeTensor = None, scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value; the probabilities are computed anew, as the forward pass had them."""
    if query.dtype is not _FLOAT32:
        op = _aten._scaled_dot_product_flash_attention_for_cpu_backward.default
        operands = machine.operands((gradient, query, key, value))
        return op(*operands, out, logsumexp, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
    scale = default_scale(query) if scale is None else scale
    with machine.as_forward():
        _, probabilities, read, _ = attend(machine, query, key, value, attn_mask, None, 0.0, is_causal, scale, False, True)
    gradients = attention_backward(
        machine, gradient, query, key, value, None, probabilities, read, 0.0, scale, False, False
    )
    return gradients[:3]
