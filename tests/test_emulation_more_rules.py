"""Sums by index, statistics, prefix sums, interpolation: against explicit arithmetic."""

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

import fpsim
import fpsim.arrays.elementary
from fpsim.emulation import TABLE
from fpsim.emulation.schemas import is_out

HALF = torch.float16


def values(*shape, seed=0, scale=1.0):
    return fpsim.round(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale, "fp16")


def chained(base, index, source):
    """index_add along axis 0 in torch.half, in ascending order of the source."""
    total = base.to(HALF).clone()
    for place, row in zip(index.tolist(), source.to(HALF), strict=True):
        total[place] = total[place] + row
    return total.float()


def test_sums_by_index_follow_the_accumulator_and_the_order_of_the_source():
    base, source = values(5, 3), values(40, 3, seed=1)
    index = torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(2))
    expected, from_zero = chained(base, index, source), chained(torch.zeros(5, 3), index, source)
    with fpsim.emulate("fp16", "fp16"):
        assert torch.equal(base.index_add(0, index, source), expected)
        assert torch.equal(base.scatter_add(0, index[:, None].expand(40, 3), source), expected)
        assert torch.equal(base.index_put((index,), source, accumulate=True), expected)
        assert torch.equal(base.clone().index_add_(0, index, source), expected)
        assert torch.equal(base.T.contiguous().index_add(1, index, source.T), expected.T)
        weight = torch.zeros(5, 3, requires_grad=True)
        functional.embedding(index, weight).backward(source)
        assert torch.equal(weight.grad, from_zero)
        rows = base.clone().requires_grad_()
        rows[index].backward(source)
        assert torch.equal(rows.grad, from_zero)
        assert torch.equal(base.scatter(0, index[:, None].expand(40, 3), source, reduce="add"), expected)
        assert torch.equal(base.scatter_reduce(0, index[:, None].expand(40, 3), source, "sum"), expected)


def test_prefix_sums_are_the_accumulators_states():
    x = values(4, 30)
    total, expected = torch.zeros(4, dtype=HALF), []
    for column in x.to(HALF).T:
        total = total + column
        expected.append(total)
    with fpsim.emulate("fp16", "fp16"):
        sums = x.cumsum(1)
    assert torch.equal(sums, torch.stack(expected, 1).float())


@pytest.mark.parametrize("dim", [None, 0, 1, (0, 2)])
def test_statistics_round_once(dim):
    x = values(4, 5, 6, scale=3.0)
    axes = (0, 1, 2) if dim is None else dim
    wide = x.double()
    mean = wide.mean(axes, keepdim=True)
    squares = ((wide - mean) ** 2).sum(axes)
    count = x.numel() // squares.numel()
    with fpsim.emulate("fp16"):
        actual = [x.var(dim), x.std(dim, correction=0), *torch.var_mean(x, dim), x.logsumexp(axes)]
    variance = squares / (count - 1)
    expected = [variance, (squares / count).sqrt(), variance, mean.reshape(squares.shape), wide.logsumexp(axes)]
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, fpsim.round(b, "fp16").float())


def test_interpolation_rounds_once():
    x = values(1, 2, 5, 5)
    for mode in ("nearest", "bilinear", "bicubic"):
        with fpsim.emulate("fp16"):
            actual = functional.interpolate(x, scale_factor=1.7, mode=mode)
        assert torch.equal(actual, fpsim.round(functional.interpolate(x.double(), scale_factor=1.7, mode=mode), "fp16").float())


def test_elementary_functions_are_those_of_the_arrays():
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(HALF).float()
    for name in (
        "exp",
        "exp2",
        "expm1",
        "log",
        "log2",
        "log10",
        "log1p",
        "sin",
        "cos",
        "tan",
        "tanh",
        "sigmoid",
        "erf",
        "rsqrt",
    ):
        with fpsim.emulate("fp16"):
            emulated = getattr(torch, name)(patterns).numpy()
        with np.errstate(all="ignore"):
            expected = getattr(fpsim.arrays.elementary, name)(patterns.numpy(), "fp16")
        assert np.array_equal(emulated, expected, equal_nan=True), name
        number = ~np.isnan(expected)
        assert np.array_equal(np.signbit(emulated)[number], np.signbit(expected)[number]), name


def test_group_norm_rounds_once():
    x, gradient = values(3, 6, 4, 4, scale=2.0).requires_grad_(), values(3, 6, 4, 4, seed=1)
    layer = torch.nn.GroupNorm(2, 6)
    torch.nn.init.uniform_(layer.weight)
    sim = fpsim.run(layer, "fp16")
    with sim:
        y = sim(x)
        y.backward(gradient)
    wide = x.detach().double().reshape(3, 2, -1)
    mean = wide.mean(2, keepdim=True)
    inverse = 1 / (((wide - mean) ** 2).mean(2, keepdim=True) + layer.eps).sqrt()
    normal = ((wide - mean) * inverse).reshape(x.shape)
    weight, bias = (item.detach().double()[:, None, None] for item in (sim.weight, sim.bias))
    assert torch.equal(y.detach(), fpsim.round(normal * weight + bias, "fp16").float())
    saved = ((wide - mean.float().double()) * inverse.float().double()).reshape(x.shape)
    assert torch.equal(sim.weight.grad, fpsim.round((gradient.double() * saved).sum((0, 2, 3)), "fp16").float())
    assert torch.equal(sim.bias.grad, fpsim.round(gradient.double().sum((0, 2, 3)), "fp16").float())


def test_rows_that_are_masked_out_are_zero_in_attention():
    q = values(1, 2, 4, 8)
    mask = torch.tensor([[True, False, False, False], [False] * 4, [True, True, False, False], [True] * 4])
    with fpsim.emulate("fp16"):
        y = functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    assert torch.isfinite(y).all()
    assert (y[:, :, 1] == 0).all()


def test_nan_to_num_knows_the_format():
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 1.0])
    with fpsim.emulate("fp16"):
        assert torch.nan_to_num(x).tolist() == [65504.0, -65504.0, 0.0, 1.0]
        assert torch.nan_to_num(x, nan=0.1, posinf=1e9).tolist() == [65504.0, -65504.0, float(np.float16(0.1)), 1.0]


def test_products_round_once():
    x = values(4, 9, scale=1.5)
    with fpsim.emulate("fp16"):
        assert torch.equal(x.prod(1), fpsim.round(x.double().prod(1), "fp16").float())
        assert torch.equal(x.cumprod(1), fpsim.round(x.double().cumprod(1), "fp16").float())
        assert torch.equal(x.prod(), fpsim.round(x.double().prod(), "fp16").float())


def test_batches_and_outer_products_go_through_the_accumulator():
    c, a, b = values(3, 4), values(5, 3, 2, seed=1), values(5, 2, 4, seed=2)
    total = torch.zeros(3, 4, dtype=HALF)
    for batch in range(5):
        for k in range(2):
            total = total + a[batch, :, k, None].to(HALF) * b[batch, k].to(HALF)
    with fpsim.emulate("fp16", "fp16"):
        batches = torch.addbmm(c, a, b)
        outer = torch.addr(c, a[0, :, 0], b[0, 0])
    assert torch.equal(batches, (total + c.to(HALF)).float())
    assert torch.equal(outer, (a[0, :, 0, None].to(HALF) * b[0, 0].to(HALF) + c.to(HALF)).float())


def test_factorizations_round_once():
    x = values(4, 4)
    with fpsim.emulate("fp16"):
        assert torch.equal(torch.linalg.inv(x), fpsim.round(torch.linalg.inv(x.double()), "fp16").float())
        assert torch.equal(torch.linalg.svdvals(x), fpsim.round(torch.linalg.svdvals(x.double()), "fp16").float())


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
def test_eigenvalues_and_eigenvectors_round_once(kind):
    x = values(5, 5) if kind is torch.float32 else torch.complex(values(5, 5), values(5, 5).t().contiguous())
    wide = torch.linalg.eig(x.to(torch.float64 if kind is torch.float32 else torch.complex128))
    with fpsim.emulate("fp16"):
        found = (*torch.linalg.eig(x), torch.linalg.eigvals(x))
    for result, exact in zip(found, (*wide, wide[0]), strict=True):
        assert result.dtype is torch.complex64
        assert torch.equal(torch.view_as_real(result), fpsim.round(torch.view_as_real(exact), "fp16").float())


def test_the_next_value_is_the_formats():
    x = torch.tensor([1.0, 1.0, 0.0, 65504.0])
    with fpsim.emulate("fp16"):
        moved = torch.nextafter(x, torch.tensor([2.0, 0.0, 1.0, float("inf")]))
    assert moved.tolist() == [1 + 2.0**-10, 1 - 2.0**-11, 2.0**-24, float("inf")]


@pytest.mark.parametrize("kind", [torch.nn.RNN, torch.nn.LSTM, torch.nn.GRU])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_networks_train(kind, bidirectional):
    torch.manual_seed(0)
    sim = fpsim.run(kind(5, 6, num_layers=2, batch_first=True, bidirectional=bidirectional), "fp16", "fp16")
    with sim:
        y, state = sim(torch.randn(3, 7, 5))
        y.sum().backward()
    for item in (y, *(state if isinstance(state, tuple) else (state,)), *(p.grad for p in sim.parameters())):
        assert torch.equal(item, fpsim.round(item.detach(), "fp16"))
        assert torch.isfinite(item).all()


def test_lost_updates_of_a_script_are_counted():
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([parameter], lr=1e-5)
    with fpsim.emulate("fp16") as emulation:
        parameter.grad = torch.ones(4)
        optimizer.step()
    total = sum(emulation.rows().values())
    from fpsim.backend.numba import counting

    assert (total[counting.UPDATES], total[counting.LOST]) == (4, 4)


def slope_of_rsqrt(x, g, **machine):
    x = x.clone().requires_grad_()
    with fpsim.emulate(**machine):
        x.rsqrt().backward(g)
    return x.grad


def test_the_gradient_of_rsqrt_is_one_kernel():
    """(-g / 2) * r^3 of every positive float16, rounded once: r^3 overflows above r = 40.3, the product need not."""
    bits = np.arange(0x7C01, dtype=np.uint16).view(np.float16)
    x = torch.from_numpy(bits.astype(np.float32))
    g = values(len(x), seed=3, scale=0.05)
    g[::7] = fpsim.round(g[::7] * 2.0**-20, "fp16")
    halved = (-g.numpy() / 2).astype(np.float16).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        roots = (1 / np.sqrt(bits.astype(np.float64))).astype(np.float16).astype(np.float64)
        wanted = (halved * roots**3).astype(np.float16)  # the cube of 11 bits times 11 bits: 44 bits, exact
    found = slope_of_rsqrt(x, g, fmt="fp16")
    assert np.array_equal(found.numpy(), wanted.astype(np.float32), equal_nan=True)
    cubes_overflow = roots**3 >= 65520
    assert np.isfinite(wanted[cubes_overflow]).sum() > 1000
    assert torch.equal(slope_of_rsqrt(x, g, fmt={"*": "fp16"}).nan_to_num(), found.nan_to_num())
    native = slope_of_rsqrt(x.half(), g.half(), fmt="native")
    assert native.dtype is HALF and torch.equal(native.float().nan_to_num(), found.nan_to_num())
    steps = slope_of_rsqrt(x, g, fmt="fp16", granularity="primitive")
    assert not np.isfinite(steps.numpy()[cubes_overflow]).any()
    x = torch.tensor([4.0, 0.25], requires_grad=True)
    with fpsim.emulate("fp16"):
        slope, = torch.autograd.grad(x.rsqrt().sum(), x, create_graph=True)
        slope.sum().backward()
    assert slope.tolist() == [-1 / 16, -4.0] and x.grad.tolist() == [3 / 128, 24.0]


def once(wide):
    """float64 results rounded to float16, as float32."""
    return torch.from_numpy(np.asarray(wide.numpy().astype(np.float16).astype(np.float32)))


def _takes_integers():
    """Every pointwise operation that torch computes of integer tensors, and arguments."""
    x = torch.tensor([[1, 2], [3, 0]])
    for op in TABLE:
        first, *others = op._schema.arguments
        needed = [str(item.type) for item in others if not item.has_default_value()]
        if torch.Tag.pointwise not in op.tags or is_out(op) or op._schema.name.endswith("_") or str(first.type) != "Tensor":
            continue
        arguments = [x, *(x + 1 if kind == "Tensor" else 2 for kind in needed)]
        try:
            expected = op(*arguments)
        except (RuntimeError, TypeError, NotImplementedError, IndexError):
            continue
        if isinstance(expected, torch.Tensor):
            yield op, arguments, expected


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
def test_of_integers_there_is_what_type_promotion_makes_of_them(granularity):
    cases = list(_takes_integers())
    for op, arguments, expected in cases:
        with fpsim.emulate("fp16", "fp16", granularity=granularity):
            found = op(*arguments)
        assert found.dtype is expected.dtype, op
        if not found.is_floating_point():
            assert torch.equal(found, expected), op
        elif granularity == "kernel":
            wide = op(*(item.double() if isinstance(item, torch.Tensor) else item for item in arguments))
            assert torch.equal(found.nan_to_num(), once(wide).nan_to_num()), op
        else:  # steps that are rounded
            assert torch.allclose(found, expected, rtol=4e-3, atol=2e-3, equal_nan=True), op
            assert torch.equal(found.nan_to_num(), found.half().float().nan_to_num()), op
    assert len(cases) > 150


def test_integers_beside_numbers_of_the_format_are_values_of_it():
    x, count = torch.tensor([0.5, 1.5]), torch.tensor([2049, 3])
    with fpsim.emulate("fp16", "fp16"):
        assert torch.equal(torch.nextafter(x, count), x + 2.0 ** torch.tensor([-11.0, -10.0]))
        assert count.log2()[0] == 11 and torch.hypot(count, x)[0] == 2048  # 2049 is between two values


LOSSES = {
    "mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"
}  # fmt: skip


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64])
def test_losses_promote_their_targets_as_torch_does(dtype, granularity):
    x, target = torch.tensor([0.5, 0.25, 0.75]), torch.tensor([1, 0, 1]).to(dtype)
    for name in LOSSES:
        loss = getattr(functional, name)
        try:
            expected = loss(x, target)
        except RuntimeError:
            with fpsim.emulate("fp16", "fp16", granularity=granularity), pytest.raises(RuntimeError):
                loss(x, target)
            continue
        with fpsim.emulate("fp16", "fp16", granularity=granularity):
            found = loss(x, target)
        wide = loss(x.double(), target.double())
        assert found.dtype is expected.dtype
        assert torch.equal(found, once(wide) if found.dtype is torch.float32 else expected), name


def test_what_a_float64_number_fills_is_rounded():
    third = torch.tensor(1 / 3, dtype=torch.float64)
    with fpsim.emulate("fp16"):
        filled, assigned = torch.zeros(2).fill_(third), torch.zeros(2)
        assigned[:] = third
        masked = torch.zeros(2).masked_fill(torch.tensor([True, False]), third.float())
    for found in (filled, assigned, masked):
        assert found[0].item() == 0.333251953125


WITH_OUT = {
    "sum": lambda x, out: torch.sum(x, 1, out=out),
    "mean": lambda x, out: torch.mean(x, 1, out=out),
    "norm": lambda x, out: torch.linalg.vector_norm(x, dim=1, out=out),
    "logsumexp": lambda x, out: torch.logsumexp(x, 1, out=out),
    "bernoulli": lambda x, out: torch.bernoulli(x.abs().clamp(max=1), out=out),
    "normal": lambda x, out: torch.normal(x, x.abs(), out=out),
    "polar": lambda x, out: torch.polar(x, x, out=torch.view_as_complex(out)) if out.dim() else None,
}


@pytest.mark.parametrize("name", WITH_OUT)
def test_results_go_into_tensors_that_are_given(name):
    x = values(3, 4) / 3
    shape = (3, 4, 2) if name == "polar" else (0,)
    with fpsim.emulate("fp16", "fp16"):
        torch.manual_seed(0)
        out = torch.zeros(shape)
        WITH_OUT[name](x, out)
        torch.manual_seed(0)
        again = torch.zeros(shape)
        WITH_OUT[name](x * 1, again)
    assert torch.equal(out, out.half().float()) and torch.equal(out, again) and out.numel() >= 3 and out.any()


def test_a_number_is_copied_as_it_is_filled_and_integers_are_cut():
    for fmt, dtype in (("fp16", torch.float32), ({"*": "fp16"}, torch.float32), ("native", torch.float16)):
        with fpsim.emulate(fmt):
            copied = torch.zeros(2, dtype=dtype).copy_(0.1)
        assert copied.tolist() == [0.0999755859375] * 2
    with fpsim.emulate("fp16"):
        assert torch.zeros(2, dtype=torch.int64).copy_(torch.tensor([1.7, 2.2])).tolist() == [1, 2]
        assert torch.equal(torch.full((2,), 0.5).polygamma_(1), torch.polygamma(1, torch.full((2,), 0.5)))
