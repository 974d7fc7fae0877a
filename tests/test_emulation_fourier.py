"""Fourier transforms: NumPy's in extended precision rounded once; under "primitive" float16 operation by operation.

Sums of 16-bit values often lie exactly between two such values, where a result's last place in float64 decides: extended
precision, rounded to float64 first, has them exactly.
"""

import itertools

import ml_dtypes
import numpy as np
import pytest
import torch

import fpsim
from tests.frequency import often

HALF = np.float16
LENGTHS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 60, 64, 97, 128, 250]
NORMS = ["backward", "ortho", "forward"]


def half(x):
    """Parts rounded to float16, in double precision."""
    x = np.asarray(x)
    return half(x.real) + 1j * half(x.imag) if np.iscomplexobj(x) else x.astype(HALF).astype(np.float64)


def real_numbers(*shape, seed=0):
    return half(np.random.default_rng(seed).normal(size=shape))


def complex_numbers(*shape, seed=0):
    return real_numbers(*shape, seed=seed) + 1j * real_numbers(*shape, seed=seed + 100)


def transform(name, x, **options):
    """NumPy's transform in extended precision, rounded to double precision."""
    wide = np.asarray(x, np.clongdouble if np.iscomplexobj(x) else np.longdouble)
    found = getattr(np.fft, name)(wide, **options)
    return found.astype(np.complex128 if np.iscomplexobj(found) else np.float64)


def tensor_of(x):
    return torch.from_numpy(np.asarray(x, np.complex64 if np.iscomplexobj(x) else np.float32))


def same(found, expected):
    found = found.detach().resolve_conj().numpy()
    assert found.shape == expected.shape and np.iscomplexobj(found) == np.iscomplexobj(expected)
    assert np.array_equal(found, expected), np.abs(found - expected).max()


TRANSFORMS = {  # what they take, and the axes of more than one
    "fft": (complex_numbers, {}), "ifft": (complex_numbers, {}), "rfft": (real_numbers, {}), "ihfft": (real_numbers, {}),
    "irfft": (complex_numbers, {"n": None}), "hfft": (complex_numbers, {"n": None}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "norm"), often(itertools.product(TRANSFORMS, NORMS), lambda case: case[1] == "ortho" or case[0] == "fft")
)
def test_each_part_is_the_float64_transform_rounded_once(name, norm):
    draw, options = TRANSFORMS[name]
    for length in LENGTHS:
        size = length // 2 + 1 if options else length
        x, named = draw(3, size, seed=length), {"n": length} if options else {}
        with fpsim.emulate("fp16"):
            found = getattr(torch.fft, name)(tensor_of(x), norm=norm, **named)
        same(found, half(transform(name, x, norm=norm, **named)))


@pytest.mark.parametrize("name", ["fft2", "ifft2", "rfft2", "irfft2", "fftn", "ifftn", "rfftn", "irfftn"])
def test_transforms_of_several_axes_round_once_at_the_end(name):
    x = (real_numbers if name.startswith("rfft") else complex_numbers)(3, 6, 5)
    with fpsim.emulate("fp16"):
        found = getattr(torch.fft, name)(tensor_of(x), norm="ortho")
        moved = torch.fft.fft(tensor_of(x), dim=0), torch.fft.fft(tensor_of(x), 9, dim=1)
    axes = {"axes": (-2, -1)} if name.endswith("2") else {"axes": (0, 1, 2)}
    same(found, half(transform(name, x, norm="ortho", **axes)))
    same(moved[0], half(transform("fft", x, axis=0)))
    same(moved[1], half(transform("fft", x, n=9, axis=1)))


def test_other_formats_round_the_same_values():
    x = complex_numbers(4, 24)
    with fpsim.emulate("bf16"):
        found = torch.view_as_real(torch.fft.fft(tensor_of(x)))
    narrow = np.stack([x.real, x.imag], -1).astype(ml_dtypes.bfloat16).astype(np.float64)
    wanted = transform("fft", narrow[..., 0] + 1j * narrow[..., 1])
    expected = np.stack([wanted.real, wanted.imag], -1).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("length", [8, 11])
def test_gradients_are_transforms_rounded_once(length):
    z, x, g = complex_numbers(2, length), real_numbers(2, length, seed=1), complex_numbers(2, length, seed=2)
    a, b = tensor_of(z).requires_grad_(), tensor_of(x).requires_grad_()
    with fpsim.emulate("fp16"):
        torch.fft.fft(a).backward(tensor_of(g))
        torch.fft.rfft(b).backward(tensor_of(g[:, : length // 2 + 1]))
        c = tensor_of(z[:, : length // 2 + 1]).requires_grad_()
        torch.fft.irfft(c, length, norm="forward").backward(tensor_of(x))
    same(a.grad, half(transform("ifft", g, norm="forward")))
    padded = np.zeros_like(g)
    padded[:, : length // 2 + 1] = g[:, : length // 2 + 1]
    same(b.grad, half(transform("ifft", padded, norm="forward").real))
    gradient = half(transform("rfft", x))
    gradient[:, 1 : (length + 1) // 2] = half(2 * gradient[:, 1 : (length + 1) // 2])
    same(c.grad, gradient)


# "primitive"


def product(z, w):
    return z[0] * w[0] - z[1] * w[1], z[0] * w[1] + z[1] * w[0]


def turn(numerator, denominator, sign):
    angle = sign * 2 * np.pi * numerator / denominator
    return np.cos(angle).astype(HALF), np.sin(angle).astype(HALF)


def by_halves(z, sign):
    """Decimation in time by recursion, in float16; a size of 2 multiplies by nothing."""
    n = z[0].shape[-1]
    if n == 1:
        return z
    even, odd = (by_halves(tuple(part[..., first::2] for part in z), sign) for first in (0, 1))
    if n > 2:
        odd = product(odd, turn(np.arange(n // 2), n, sign))
    return tuple(np.concatenate([e + o, e - o], -1) for e, o in zip(even, odd, strict=True))


def bluestein(z, sign):
    n = z[0].shape[-1]
    padded = 1 << (2 * n - 2).bit_length()
    j = np.arange(n)
    chirp = turn((j * j) % (2 * n), 2 * n, sign)
    spread = np.zeros(padded, complex)
    values = np.exp(-sign * 1j * np.pi * (j * j % (2 * n)) / n)
    spread[:n], spread[padded - n + 1 :] = values, values[1:][::-1]
    spectrum = np.fft.fft(spread) / padded
    a = [np.pad(part, ((0, 0), (0, padded - n))) for part in product(z, chirp)]
    a = by_halves(product(by_halves(a, -1), (spectrum.real.astype(HALF), spectrum.imag.astype(HALF))), 1)
    return product(tuple(part[..., :n] for part in a), chirp)


@pytest.mark.parametrize("length", [2, 4, 8, 16, 64, 3, 5, 7, 12])
def test_primitive_rounds_every_operation_of_the_stated_algorithm(length):
    z = complex_numbers(3, length)
    with fpsim.emulate("fp16", granularity="primitive"):
        found = {sign: (torch.fft.fft if sign < 0 else torch.fft.ifft)(tensor_of(z), norm=norm)
                 for sign, norm in ((-1, "backward"), (1, "forward"))}  # fmt: skip
        scaled = torch.fft.fft(tensor_of(z), norm="forward")
    pair = z.real.astype(HALF), z.imag.astype(HALF)
    for sign, result in found.items():
        wanted = (by_halves if length & (length - 1) == 0 else bluestein)(pair, sign)
        same(result, wanted[0].astype(np.float64) + 1j * wanted[1].astype(np.float64))
        if sign < 0:
            factor = HALF(1 / length)
            same(scaled, (wanted[0] * factor).astype(np.float64) + 1j * (wanted[1] * factor).astype(np.float64))


# Short-time transforms: windows, transforms and overlapping sums, one rounding each


def test_short_time_transforms_go_step_by_step():
    x, window = real_numbers(2, 60), half(np.hanning(9)[:8])
    with fpsim.emulate("fp16"):
        w = tensor_of(window)
        spectra = torch.stft(tensor_of(x), 8, 4, window=w, center=False, return_complex=True)
        back = torch.istft(spectra, 8, 4, window=w, center=True)
    frames = np.lib.stride_tricks.sliding_window_view(x, 8, axis=-1)[:, ::4]
    wanted = half(transform("rfft", half(frames * window)))
    same(spectra, wanted.swapaxes(1, 2))
    pieces = half(half(transform("irfft", wanted, n=8)) * window)
    squares = half(window * window)
    total, weight = np.zeros((2, 60)), np.zeros(60)
    for index in range(pieces.shape[1]):
        total[:, 4 * index : 4 * index + 8] += pieces[:, index]
        weight[4 * index : 4 * index + 8] += squares
    with np.errstate(invalid="ignore"):
        same(back, half(half(total) / half(weight))[:, 4:-4])


def test_short_time_transforms_have_gradients_of_the_format():
    x = tensor_of(real_numbers(2, 64)).requires_grad_()
    for granularity in ("kernel", "primitive"):
        x.grad = None
        with fpsim.emulate("fp16", granularity=granularity):
            spectra = torch.stft(x, 16, window=torch.hann_window(16), return_complex=True)
            torch.istft(spectra * 2, 16, window=torch.hann_window(16)).square().sum().backward()
        assert torch.equal(x.grad, x.grad.half().float())
        torch.testing.assert_close(x.grad, 8 * x.detach(), rtol=0.02, atol=0.1)


@pytest.mark.parametrize("length", [1, 6, 7, 50])
def test_frequencies_are_quotients_rounded_once(length):
    for name in ("fftfreq", "rfftfreq"):
        expected = getattr(np.fft, name)(length, 0.3) * 0 + np.rint(getattr(np.fft, name)(length) * length) / (length * 0.3)
        with fpsim.emulate("fp16"):
            found = getattr(torch.fft, name)(length, 0.3)
            wide = getattr(torch.fft, name)(length, 0.3, dtype=torch.float64)
        assert np.array_equal(found.numpy(), expected.astype(HALF).astype(np.float32))
        assert torch.equal(wide, getattr(torch.fft, name)(length, 0.3, dtype=torch.float64))


def test_a_transform_into_a_tensor_is_the_transform():
    x, z = tensor_of(real_numbers(6)), tensor_of(complex_numbers(6))
    with fpsim.emulate("fp16"):
        for name, source in (("fft", z), ("rfft", x), ("irfft", z)):
            function = getattr(torch.fft, name)
            wanted = function(source)
            out = torch.empty_like(wanted)
            assert function(source, out=out) is out and torch.equal(out, wanted)
