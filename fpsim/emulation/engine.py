"""What the rules ask of the accumulation engine: products and sums of values of the format, rounded to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fpsim._kernels import counting
from fpsim.formats import Format
from fpsim.products import matmul_into
from fpsim.rounding import Rounding, round_into


def _holds(fmt: Format) -> type:
    """The narrowest dtype that holds the format."""
    return np.float32 if fmt.precision <= 24 and fmt.emax <= 127 and fmt.emin - fmt.precision >= -150 else np.float64


def product(machine: Any, a: np.ndarray, b: np.ndarray, addend: np.ndarray | None = None, alpha: float = 1.0, beta: float = 1.0) -> np.ndarray:
    """a @ b (2-D, values of the format) through the accumulator, then rnd(rnd(alpha * acc) + rnd(beta * addend)) in its format.

    Factors of 1 are skipped. `addend` broadcasts to the result. One rounding to the format at the end; float32 out.
    """
    policy = machine.policy
    key = machine.key() if machine.stochastic else 0
    shape = (a.shape[0], b.shape[1])
    if alpha == 1 and (addend is None or beta == 1):
        out = np.empty(shape, np.float32)
        matmul_into(a, b, out, policy.fmt, policy.accumulator, policy.rounding, key, addend)
        counting.count_results(out.reshape(-1), machine.row())
        return out
    inner = _inner_format(policy)
    out = np.empty(shape, _holds(inner))
    matmul_into(a, b, out, inner, policy.accumulator, policy.rounding, key)
    return _epilogue(machine, out, inner, addend, alpha, beta)


def _inner_format(policy: Any) -> Format:
    accumulator = policy.accumulator
    return accumulator.promoted or accumulator.format


def _epilogue(machine: Any, total: np.ndarray, inner: Format, addend: np.ndarray | None, alpha: float, beta: float) -> np.ndarray:
    if alpha != 1:
        total = _rounded(machine, total.astype(np.float64) * machine.scalar(float(alpha)), inner)
    if addend is not None:
        scaled = addend.astype(np.float64)
        if beta != 1:
            scaled = _rounded(machine, scaled * machine.scalar(float(beta)), inner)
        total = _rounded(machine, _sum(total, scaled, machine.rounding), inner)
    return narrow(machine, total)


def _sum(a: np.ndarray, b: np.ndarray, rounding: Rounding) -> np.ndarray:
    from fpsim.emulation.elementwise import odd_sum

    return odd_sum(a, b, rounding)


def _rounded(machine: Any, values: np.ndarray, fmt: Format) -> np.ndarray:
    values = np.ascontiguousarray(values)
    round_into(values, values, fmt, machine.rounding, machine.key() if machine.stochastic else 0)
    return values


def narrow(machine: Any, values: np.ndarray) -> np.ndarray:
    """Values rounded once to the format, as float32."""
    return machine.finish(torch.from_numpy(np.ascontiguousarray(values)).reshape(values.shape)).numpy()


def column_sums(machine: Any, values: np.ndarray, divisor: int | None = None) -> np.ndarray:
    """The sum of each column of (k, m), over ascending rows, through the accumulator; divided by `divisor` in its format."""
    ones = np.ones((1, values.shape[0]), np.float32)
    if divisor is None:
        return product(machine, ones, values)[0]
    policy = machine.policy
    inner = _inner_format(policy)
    total = np.empty((1, values.shape[1]), _holds(inner))
    matmul_into(ones, values, total, inner, policy.accumulator, policy.rounding, machine.key() if machine.stochastic else 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return narrow(machine, _rounded(machine, total.astype(np.float64) / divisor, inner))[0]
