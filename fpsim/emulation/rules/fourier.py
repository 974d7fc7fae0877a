"""Discrete Fourier transforms: one kernel in float64, each part rounded once; under "primitive" every operation rounds.

Axes go last first. Along one, a power of two is taken apart in time by two, smallest parts first, without multiplications where
the factor is always 1. Bluestein's transform is a convolution with a chirp, by transforms of the least power of two from
2n - 1: under "primitive" that of all other lengths. In float64 they are taken apart by their least prime, whose own transform
is a sum in ascending order; that of a prime above 50 is Bluestein's, but for the sum of everything. So sums that fall between
two values of the format are exact, and round to even.

Factors are constants: computed in float64 and, under "primitive", rounded once, as are the transform of the chirp, divided by
its length, and the scale of `norm`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsim.emulation.machine import portable
from fpsim.emulation.machine.complex_functions import Pair
from fpsim.emulation.machine.parts import COMPLEX64, parts_of
from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import Rule, register_functional

_aten = torch.ops.aten
_DIRECT = 50  # primes below are transformed by sums
_NONE, _BY_ROOT = 0, 1  # torch's norm modes; 2 divides by the length


def _turns(numerators: np.ndarray, length: int) -> Pair:
    """cos and sin of 2 pi j / length in float64, from the nearest quarter turn: exact at quarters."""
    j = numerators % length
    quarter = (8 * j + length) // (2 * length)
    angle = torch.from_numpy((4 * j - quarter * length) * (math.pi / 2 / length))
    c, s = portable.FUNCTIONS["cos"](angle).numpy(), portable.FUNCTIONS["sin"](angle).numpy()
    rest = 4 * j - quarter * length
    s = np.where(3 * abs(rest) == length, 0.5 * np.sign(rest), s)  # of a twelfth of a turn
    turned = [(c, s), (-s, c), (-c, -s), (s, -c)]
    choices = [np.choose(quarter % 4, [pair[part] for pair in turned]) for part in (0, 1)]
    return torch.from_numpy(choices[0] + 0.0), torch.from_numpy(choices[1] + 0.0)


@lru_cache(maxsize=64)
def _factors(size: int, sign: int) -> Pair:
    """e^(sign 2 pi i j / size) for j below size / 2."""
    c, s = _turns(np.arange(size // 2), size)
    return c, sign * s


@lru_cache(maxsize=64)
def _reversed_bits(size: int) -> Tensor:
    order = np.zeros(1, np.int64)
    while len(order) < size:
        order = np.concatenate([2 * order, 2 * order + 1])
    return torch.from_numpy(order)


@lru_cache(maxsize=64)
def _chirp(size: int, sign: int) -> tuple[Pair, Pair, int]:
    """e^(sign pi i j^2 / n), the transform of its conjugate over the padded length, divided by that, and the length."""
    j = np.arange(size)
    c, s = _turns(j * j % (2 * size), 2 * size)
    padded = 1 << (2 * size - 2).bit_length()
    places = torch.from_numpy(np.concatenate([j, padded - j[1:]]))
    values = torch.cat([torch.arange(size), torch.arange(1, size)])
    real, imaginary = (torch.zeros(padded, dtype=torch.float64).index_copy(0, places, part[values]) for part in (c, -sign * s))
    real, imaginary = _by_halves(_Constants(None), (real, imaginary), -1)
    return (c, sign * s), (real / padded, imaginary / padded), padded


class _Constants:
    """float64 constants as a transform multiplies by them."""

    def __init__(self, machine: Machine | None):
        self.machine = machine

    def __call__(self, pair: Pair) -> Pair:
        if self.machine is None:
            return pair
        real, imaginary = (self.machine.finish(part) for part in pair)
        return real, imaginary


def _times(z: Pair, w: Pair) -> Pair:
    (a, b), (c, d) = z, w
    return a * c - b * d, a * d + b * c


def _by_halves(constants: _Constants, z: Pair, sign: int) -> Pair:
    """The transform along the last axis, whose length is a power of two."""
    length = z[0].shape[-1]
    order = _reversed_bits(length)
    a, b = (part.index_select(-1, order) for part in z)
    size = 2
    while size <= length:
        shape = (*a.shape[:-1], length // size, 2, size // 2)
        (even_a, odd_a), (even_b, odd_b) = (part.reshape(shape).unbind(-2) for part in (a, b))
        if size > 2:
            odd_a, odd_b = _times((odd_a, odd_b), constants(_factors(size, sign)))
        a, b = (
            torch.cat([even + odd, even - odd], -1).reshape(*a.shape[:-1], length)
            for even, odd in ((even_a, odd_a), (even_b, odd_b))
        )
        size *= 2
    return a, b


def _by_primes(constants: _Constants, z: Pair, sign: int) -> Pair:
    """The transform along the last axis in float64, of a length that is no power of two."""
    length = z[0].shape[-1]
    prime = next(p for p in range(2, length + 1) if length % p == 0)
    if prime > _DIRECT:
        a, b = _by_chirp(constants, z, sign)
        for part, source in ((a, z[0]), (b, z[1])):
            part[..., 0] = sum(source.unbind(-1))
        return a, b
    size = length // prime
    parts = [_transform(constants, (z[0][..., first::prime], z[1][..., first::prime]), sign) for first in range(prime)]
    k = np.arange(size)
    for first in range(1, prime):
        c, s = _turns(first * k, length)
        parts[first] = _times(parts[first], (c, sign * s))
    found = []
    for q in range(prime):
        a, b = parts[0]
        for first in range(1, prime):
            c, s = _turns(np.array([first * q]), prime)
            own = _times(parts[first], (c, sign * s))
            a, b = a + own[0], b + own[1]
        found.append((a, b))
    return torch.cat([a for a, _ in found], -1), torch.cat([b for _, b in found], -1)


def _transform(constants: _Constants, z: Pair, sign: int) -> Pair:
    """The transform along the last axis."""
    length = z[0].shape[-1]
    if length & (length - 1) == 0:
        return _by_halves(constants, z, sign)
    return (_by_primes if constants.machine is None else _by_chirp)(constants, z, sign)


def _by_chirp(constants: _Constants, z: Pair, sign: int) -> Pair:
    """Bluestein's transform along the last axis."""
    length = z[0].shape[-1]
    chirp, spectrum, padded = _chirp(length, sign)
    turned = constants(chirp)
    a, b = (torch.constant_pad_nd(part, (0, padded - length)) for part in _times(z, turned))
    a, b = _by_halves(constants, _times(_by_halves(constants, (a, b), -1), constants(spectrum)), 1)
    return _times((a[..., :length], b[..., :length]), turned)


def _along(constants: _Constants, z: Pair, axes: list[int], sign: int) -> Pair:
    for axis in reversed(axes):
        a, b = (part.transpose(axis, -1) for part in z)
        a, b = _transform(constants, (a, b), sign)
        z = a.transpose(axis, -1), b.transpose(axis, -1)
    return z


def _scaled(machine: Machine, z: Pair, lengths: list[int], norm: int) -> Pair:
    count = math.prod(lengths)
    if norm == _NONE or count == 1:
        return z
    divisor = math.sqrt(count) if norm == _BY_ROOT else float(count)
    if machine.arithmetic.primitive:
        return z[0] * (1 / divisor), z[1] * (1 / divisor)
    return z[0] / divisor, z[1] / divisor


def _run(machine: Machine, z: Pair, axes: list[int], norm: int, sign: int, size: int | None = None) -> Pair:
    """Transforms along axes; with a size, the last axis is half of one that has that size and conjugates in its other half."""
    constants = _Constants(machine if machine.arithmetic.primitive else None)
    lengths = [z[0].shape[axis] for axis in axes]
    if size is None:
        return _scaled(machine, _along(constants, z, axes, sign), lengths, norm)
    *others, last = axes
    a, b = _along(constants, z, others, sign)
    k = torch.arange(size)
    mirrored = k > size // 2
    source = torch.where(mirrored, size - k, k)
    a, b = a.index_select(last, source), b.index_select(last, source)
    shape = [1] * a.dim()
    shape[last] = size
    b = torch.where(mirrored.reshape(shape), -b, b)
    return _scaled(machine, _along(constants, (a, b), [last], sign), [*lengths[:-1], size], norm)


def _parts(machine: Machine, x: Tensor) -> Pair:
    if x.is_complex():
        a, b = parts_of(machine.operand(x)).detach().unbind(-1)
    else:
        a = machine.operand(x).detach()
        b = machine.exact(torch.zeros_like(a))
    return (a, b) if machine.arithmetic.primitive else (a.double(), b.double())


def _evaluate(
    machine: Machine, x: Tensor, axes: list[int], norm: int, sign: int, size: int | None = None,
    keep: tuple[int, int] | None = None,
) -> Tensor:  # fmt: skip
    """The transform, rounded; real where there is a size, and cut to a length along an axis by `keep`."""
    axes = [axis % x.dim() for axis in axes]
    z = _parts(machine, x)
    if machine.arithmetic.primitive:
        with machine.dispatching():
            z = _run(machine, z, axes, norm, sign, size)
            z = z if keep is None else (z[0].narrow(keep[0], 0, keep[1]), z[1].narrow(keep[0], 0, keep[1]))
            return z[0].contiguous() if size is not None else torch.view_as_complex(torch.stack(z, -1))
    z = _run(machine, z, axes, norm, sign, size)
    z = z if keep is None else (z[0].narrow(keep[0], 0, keep[1]), z[1].narrow(keep[0], 0, keep[1]))
    return machine.finish(z[0].contiguous() if size is not None else torch.view_as_complex(torch.stack(z, -1)))


def complex_to_complex(machine: Machine, x: Tensor, dim: list[int], normalization: int, forward: bool) -> Tensor:
    if x.dtype is not COMPLEX64:
        return _aten._fft_c2c.default(x, dim, normalization, forward)
    return _evaluate(machine, x, [*dim], normalization, -1 if forward else 1)


def real_to_complex(machine: Machine, x: Tensor, dim: list[int], normalization: int, onesided: bool) -> Tensor:
    if x.dtype is not torch.float32:
        return _aten._fft_r2c.default(x, dim, normalization, onesided)
    last = dim[-1] % x.dim()
    return _evaluate(machine, x, [*dim], normalization, -1, keep=(last, x.shape[last] // 2 + 1) if onesided else None)


def complex_to_real(machine: Machine, x: Tensor, dim: list[int], normalization: int, last_dim_size: int) -> Tensor:
    if x.dtype is not COMPLEX64:
        return _aten._fft_c2r.default(x, dim, normalization, last_dim_size)
    return _evaluate(machine, x, [*dim], normalization, 1, last_dim_size)


for _name, _rule in (("_fft_c2c", complex_to_complex), ("_fft_r2c", real_to_complex), ("_fft_c2r", complex_to_real)):
    register_functional(_name, "complex", lambda op, rule=_rule: rule)  # type: ignore[misc]


def _frequencies(op: torch._ops.OpOverload) -> Rule:
    """k / (n d), rounded once."""
    onesided = op is _aten.fft_rfftfreq.default

    def make(machine: Machine, length: int, spacing: float = 1.0, **kwargs: Any) -> Tensor:
        result = op(length, spacing, **kwargs)
        if result.dtype is not torch.float32 or result.device.type == "meta":
            return result
        machine.check(result)
        k = torch.arange(len(result), dtype=torch.float64)
        if not onesided:
            k[(length + 1) // 2 :] -= length
        return machine.finish(k / (length * spacing))

    return make


register_functional("fft_fftfreq fft_rfftfreq", "constant", _frequencies)
