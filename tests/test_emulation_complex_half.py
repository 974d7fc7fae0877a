"""complex32 under fmt="native": the bits of complex64 under fmt="fp16"; matrix factorizations of complex numbers."""

import numpy as np
import pytest
import torch

import fpsim

COMPLEX32, COMPLEX64, COMPLEX128 = torch.complex32, torch.complex64, torch.complex128


def of(*shape, seed=0):
    parts = np.random.default_rng(seed).normal(size=(*shape, 2)).astype(np.float16).astype(np.float32)
    return torch.view_as_complex(torch.from_numpy(parts))


def narrowed(value):
    """complex64 and float32 numbers as complex32 and float16 ones: values of both."""
    return value.to(COMPLEX32 if value.is_complex() else torch.float16)


CALLS = {
    "add": lambda z, w, x: z + w,
    "mul": lambda z, w, x: z * w,
    "div": lambda z, w, x: z / w,
    "number": lambda z, w, x: z * (0.1 + 0.3j),
    "real": lambda z, w, x: z * x,
    "conjugate": lambda z, w, x: z.conj() @ w.mH,
    "exp": lambda z, w, x: z.exp(),
    "abs": lambda z, w, x: z.abs(),
    "mm": lambda z, w, x: z @ w,
    "addmm": lambda z, w, x: torch.addmm(w, z, w),
    "sum": lambda z, w, x: z.sum(0),
    "polar": lambda z, w, x: torch.complex(x, x + 1),
    "in place": lambda z, w, x: z.clone().mul_(w),
    "index": lambda z, w, x: torch.cat([z[1:], w])[:, 0],
}


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
@pytest.mark.parametrize("accumulate", ["fp16", "fp32:pairwise"])
@pytest.mark.parametrize("call", CALLS)
def test_it_means_two_halves(call, accumulate, granularity):
    z, w, x = of(4, 4), of(4, 4, seed=1), of(4, 4, seed=2).real.contiguous()
    with fpsim.emulate("fp16", accumulate, granularity=granularity):
        expected = CALLS[call](z, w, x)
    with fpsim.emulate("native", accumulate, granularity=granularity):
        found = CALLS[call](narrowed(z), narrowed(w), narrowed(x))
    assert found.dtype is (COMPLEX32 if expected.is_complex() else torch.float16)
    assert torch.equal(found.to(expected.dtype), expected)


def test_gradients_and_casts():
    z, w = narrowed(of(3, 3)).requires_grad_(), narrowed(of(3, 3, seed=1)).requires_grad_()
    with fpsim.emulate("native", "fp16"):
        torch.view_as_real(z @ w).square().sum().backward()
    y, v = of(3, 3).requires_grad_(), of(3, 3, seed=1).requires_grad_()
    with fpsim.emulate("fp16", "fp16"):
        torch.view_as_real(y @ v).square().sum().backward()
    for found, expected in ((z.grad, y.grad), (w.grad, v.grad)):
        assert found.dtype is COMPLEX32 and torch.equal(found.to(COMPLEX64), expected)
    near = torch.tensor([1 + 2.0**-11 + 2.0**-26, 2.0**-25], dtype=torch.float64)  # above ties of float32's
    with fpsim.emulate("native"):
        cast = torch.view_as_complex(near).to(COMPLEX32)
        assert z.detach().to(COMPLEX64).dtype is COMPLEX64 and (z.detach() + of(3, 3)).dtype is COMPLEX64
    assert torch.view_as_real(cast).tolist() == near.numpy().astype(np.float16).tolist()
    with fpsim.emulate("fp16"):
        kept = torch.view_as_real(torch.view_as_complex(near).to(COMPLEX64))
    assert kept.tolist() == near.numpy().astype(np.float16).tolist()


def test_a_named_format_has_none():
    with fpsim.emulate("fp16"), pytest.raises(fpsim.UnsupportedOp, match=r"complex64 first, or use fmt=.native"):
        narrowed(of(2)) + 1


# Linear algebra

FACTORIZATIONS = {
    "inv": torch.linalg.inv,
    "det": torch.linalg.det,
    "solve": lambda z: torch.linalg.solve(z, z[:, :2]),
    "lstsq": lambda z: torch.linalg.lstsq(z, z[:, :2]).solution,
    "pinv": torch.linalg.pinv,
    "qr": lambda z: torch.linalg.qr(z)[1],
    "eigvalsh": torch.linalg.eigvalsh,
    "singular values": torch.linalg.svdvals,
    "cholesky": lambda z: torch.linalg.cholesky(torch.eye(4, dtype=z.dtype) * 9),
    "triangular": lambda z: torch.linalg.solve_triangular(z, z, upper=True),
    "exp": torch.linalg.matrix_exp,
}


@pytest.mark.parametrize("name", FACTORIZATIONS)
def test_factorizations_are_lapack_in_complex128_rounded_once(name):
    z = of(4, 4)
    exact = FACTORIZATIONS[name](z.to(COMPLEX128)).resolve_conj()
    expected = torch.view_as_real(exact) if exact.is_complex() else exact
    with fpsim.emulate("fp16"):
        found = FACTORIZATIONS[name](z).resolve_conj()
    found = torch.view_as_real(found) if found.is_complex() else found
    assert np.array_equal(found.numpy(), expected.numpy().astype(np.float16).astype(np.float32))
    for fmt in ("fp16", "native"):  # complex128 means itself
        with fpsim.emulate(fmt):
            own = FACTORIZATIONS[name](z.to(COMPLEX128))
        torch.testing.assert_close(own, exact, rtol=1e-12, atol=1e-12)  # torch has LAPACK find vectors too, under a mode
    with fpsim.emulate("fp16", granularity="primitive"), pytest.raises(fpsim.UnsupportedOp, match="no steps"):
        FACTORIZATIONS[name](z)
