"""scaled_dot_product_attention against its definition in rationals, and wherever torch has a way to it."""

import contextlib
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import fpsim
from fpsim.emulation import UnsupportedOp
from tests.attention_oracle import ACCUMULATED, Head, in_steps, of_heads

attend = functional.scaled_dot_product_attention
HEADS, LENGTH, KEYS, WIDTH, CHANNELS = 2, 3, 5, 6, 4
MASKED_OUT = torch.tensor([[True, False, True, True, False], [False] * 5, [True] * 5])


@contextlib.contextmanager
def everything_rounds():
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)


MODES = {"rounded": contextlib.nullcontext, "wide": lambda: sdpa_kernel(SDPBackend.MATH), "steps": everything_rounds}
CASES = {
    "plain": {},
    "causal": {"is_causal": True},
    "masked out": {"attn_mask": MASKED_OUT},
    "bias": {"attn_mask": (3, LENGTH, KEYS)},
    "scale": {"scale": 0.3},
    "shared": {"enable_gqa": True},
    "dropout": {"dropout_p": 0.25},
}
FORMATS = {
    "fp16": tuple(ACCUMULATED), "bf16": ("fp32", "exact", "h100"), "float8_e4m3fn": ("fp32", "fp16"),
    "float8_e5m2": ("fp32", "fp16", "fp32:blocked(2)"),
}  # fmt: skip
MACHINES = [(fmt, accumulate) for fmt, known in FORMATS.items() for accumulate in known]


def drawn(seed, *shape, fmt="fp16", scale=1.0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    return fpsim.round(values, fmt).float()


def operands(fmt, shared, kind):
    heads = 3
    of_keys = 1 if shared else heads
    q, k = drawn(0, heads, LENGTH, WIDTH, fmt=fmt, scale=1.5), drawn(1, of_keys, KEYS, WIDTH, fmt=fmt, scale=1.5)
    v, gradient = drawn(2, of_keys, KEYS, CHANNELS, fmt=fmt), drawn(3, heads, LENGTH, CHANNELS, fmt=fmt)
    how = dict(CASES[kind])
    if isinstance(how.get("attn_mask"), tuple):
        how["attn_mask"] = drawn(4, *how["attn_mask"], fmt=fmt).requires_grad_()
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), gradient, how


def what_is_added(how, head):
    added = np.zeros((LENGTH, KEYS))
    mask = how.get("attn_mask")
    if how.get("is_causal"):
        added[~np.tri(LENGTH, KEYS, dtype=bool)] = -np.inf
    if mask is not None:
        mask = mask.detach().numpy()
        added = np.where(mask, 0.0, -np.inf) if mask.dtype == bool else added + mask[head]
    return added


def noise_of(how, heads):
    p = how.get("dropout_p", 0.0)
    if not p:
        return np.ones((heads, LENGTH, KEYS))
    torch.manual_seed(5)  # as torch draws: for the probabilities of its math backend
    kept = torch.empty(heads, LENGTH, KEYS).bernoulli_(1 - p).double().numpy()
    return kept * float(np.float32(1 / (1 - p)))


def definition(how, q, k, v, gradient, fmt, accumulate, wide):
    """The output and the gradients of query, key, value and mask, of the definition."""
    q, k, v, gradient = (item.detach().double().numpy() for item in (q, k, v, gradient))
    scale, group = how.get("scale", 1 / math.sqrt(WIDTH)), len(q) // len(k)
    noise = noise_of(how, len(q))
    heads = [
        Head(q[h], k[h // group], v[h // group], what_is_added(how, h), noise[h], scale, fmt, accumulate, wide)
        for h in range(len(q))
    ]
    found = [np.stack([head.output() for head in heads])]
    parts = [of_heads(heads[i : i + group], list(gradient[i : i + group])) for i in range(0, len(q), group)]
    found.append(np.concatenate([np.stack(part[0]) for part in parts]))
    found += [np.stack([part[1] for part in parts]), np.stack([part[2] for part in parts])]
    return [*found, np.concatenate([np.stack(part[3]) for part in parts])]


@pytest.mark.filterwarnings("ignore::fpsim.hardware.UnconfirmedUnit")
@pytest.mark.parametrize(
    ("fmt", "accumulate", "mode"),
    [(*machine, mode) for machine in MACHINES for mode in ("rounded", "wide") if (machine[1], mode) != ("h100", "wide")],
)
def test_every_bit_is_the_definitions(fmt, accumulate, mode):
    kinds = CASES if (fmt, accumulate) == ("fp16", "fp32") else ("plain", "bias", "shared", "masked out")
    for kind in kinds:
        q, k, v, gradient, how = operands(fmt, kind == "shared", kind)
        leaves = [q, k, v] + [item for item in (how.get("attn_mask"),) if item is not None and item.requires_grad]
        torch.manual_seed(5)
        with fpsim.emulate(fmt, accumulate), MODES[mode]():
            y = attend(q, k, v, **how)
            found = torch.autograd.grad(y, leaves, gradient)
        expected = definition(how, q, k, v, gradient, fpsim.get_format(fmt), accumulate, mode == "wide")
        for a, b in zip((y, *found), expected, strict=False):
            assert np.array_equal(a.detach().double().numpy(), b), (kind, a, b)


@pytest.mark.parametrize(("fmt", "accumulate"), [item for item in MACHINES if item[1] != "h100"])
def test_every_bit_where_everything_rounds(fmt, accumulate):
    for kind in ("plain", "bias") if fmt == "float8_e4m3fn" else ("plain", "causal", "masked out", "bias"):  # no infinity
        q, k, v, _, how = operands(fmt, False, kind)
        with fpsim.emulate(fmt, accumulate), everything_rounds():
            y = attend(q, k, v, **how).detach().double().numpy()
        for head in range(len(q)):
            given = [item[head].detach().double().numpy() for item in (q, k, v)]
            noise, scale = np.ones((LENGTH, KEYS)), 1 / math.sqrt(WIDTH)
            expected = in_steps(*given, what_is_added(how, head), noise, scale, fpsim.get_format(fmt), accumulate)
            assert np.array_equal(y[head], expected), kind


def test_under_primitive_everything_rounds():
    q, k, v, gradient, _ = operands("fp16", False, "plain")
    with fpsim.emulate("fp16", "fp16", granularity="primitive"):
        y = attend(q, k, v)
        rounded = (q * WIDTH**-0.25) @ (k * WIDTH**-0.25).transpose(-2, -1)
        assert torch.equal(y, torch.softmax(rounded, -1) @ v)
        y.backward(gradient)


# What it was mended for


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_scores_err_as_torchs_own(dtype):
    q, k, v = (drawn(seed, 2, 2, 64, 64, scale=scale).to(dtype) for seed, scale in ((0, 6), (1, 6), (2, 1)))
    exact = attend(q.double(), k.double(), v.double())
    with fpsim.emulate("native"):
        error = (attend(q, k, v).double() - exact).abs().max()
    assert error < 2 * (attend(q, k, v).double() - exact).abs().max()


@pytest.mark.parametrize("accumulate", ["fp32", "h100", "exact", "native"])
def test_scores_beyond_the_formats_range_are_no_infinities(accumulate):
    q, k = torch.full((1, 1, 4, 64), 100.0), torch.full((1, 1, 4, 64), 90.0)
    v = drawn(0, 1, 1, 1, 64).expand(1, 1, 4, 64)
    with fpsim.emulate("fp16", accumulate):
        assert torch.equal(attend(q, k, v), v)


# Ways to it


def run_and_differentiate(function, tensors, context):
    leaves = [item.detach().clone().requires_grad_() for item in tensors]
    torch.manual_seed(5)
    with context:
        y = function(*leaves)
        y.backward(torch.ones_like(y))
    return [item.detach().float() for item in (y, *(leaf.grad for leaf in leaves))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("fmt", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("how", [{}, {"is_causal": True}, {"enable_gqa": True}, {"dropout_p": 0.3}], ids=str)
def test_native_halves_are_the_named_format(fmt, dtype, how, mode):
    of_keys = 2 if "enable_gqa" in how else 4
    tensors = [drawn(seed, 2, heads, 5, 8, fmt=fmt) for seed, heads in ((0, 4), (1, of_keys), (2, of_keys))]
    with MODES[mode]():
        named = run_and_differentiate(lambda *x: attend(*x, **how), tensors, fpsim.emulate(fmt, "fp16"))
        native = run_and_differentiate(
            lambda *x: attend(*x, **how), [item.to(dtype) for item in tensors], fpsim.emulate("native", "fp16")
        )
    assert all(map(torch.equal, named, native))


@pytest.mark.parametrize("length", [5, 16, 40])
@pytest.mark.parametrize("fmt", ["fp16", "bf16"])
def test_shared_keys_are_the_same_keys_for_each_head(length, fmt):
    """In whichever orientation the products are computed, which depends on the sizes."""
    q, k, v = (drawn(seed, 2, heads, length, 8, fmt=fmt) for seed, heads in ((0, 4), (1, 2), (2, 2)))
    shared = run_and_differentiate(lambda *x: attend(*x, enable_gqa=True), (q, k, v), fpsim.emulate(fmt, fmt))
    repeated = run_and_differentiate(attend, (q, *(x.repeat_interleave(2, 1) for x in (k, v))), fpsim.emulate(fmt, fmt))
    assert all(map(torch.equal, shared[:2], repeated[:2]))  # the gradients of shared keys are sums over heads
    assert [item.shape for item in shared[2:]] == [k.shape, v.shape]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_means_itself_is_torchs_own(dtype):
    tensors = [drawn(seed, 2, 2, 5, 8).to(dtype) for seed in range(3)]
    for mode in ("rounded", "wide"):
        with MODES[mode]():
            plain = run_and_differentiate(attend, tensors, contextlib.nullcontext())
            assert all(map(torch.equal, plain, run_and_differentiate(attend, tensors, fpsim.emulate("native"))))
            if dtype is torch.float64 and mode == "rounded":
                assert all(map(torch.equal, plain, run_and_differentiate(attend, tensors, fpsim.emulate("fp16"))))


def _by_name(*x):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*x, is_causal=True)[0]


WAYS = {
    "transposed": lambda q, k, v: attend(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)), is_causal=True),
    "torch's kernel": _by_name,
    "recomputed": lambda q, k, v: checkpoint(lambda *x: attend(*x, is_causal=True), q, k, v, use_reentrant=False),
    "vmap": lambda q, k, v: torch.vmap(lambda *x: attend(*x, is_causal=True))(q, k, v),
    "vmap of some": lambda q, k, v: torch.vmap(lambda x, y: attend(x, y, v[0], is_causal=True), in_dims=(0, None))(q, k[0]),
    "one head at a time": lambda q, k, v: torch.stack(
        [attend(*(x[i][j] for x in (q, k, v)), is_causal=True) for i in range(2) for j in range(3)]
    ).reshape(q.shape),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_bits(way):
    tensors = [drawn(seed, 2, 3, 5, 8) for seed in range(3)]
    if way == "vmap of some":  # gradients of what is shared are sums over what shares it
        tensors = [x[:1].expand(2, -1, -1, -1).clone() if i else x for i, x in enumerate(tensors)]
    expected = run_and_differentiate(lambda *x: attend(*x, is_causal=True), tensors, fpsim.emulate("fp16"))
    found = run_and_differentiate(WAYS[way], tensors, fpsim.emulate("fp16"))
    count = 2 if way == "vmap of some" else 4
    assert all(map(torch.equal, expected[:count], found[:count]))


def test_without_autograd_it_is_the_same():
    tensors = [drawn(seed, 2, 3, 5, 8) for seed in range(3)]
    with fpsim.emulate("fp16"):
        expected = attend(*tensors)
        with torch.inference_mode():
            assert torch.equal(attend(*tensors), expected)
            math_backend = torch.ops.aten._scaled_dot_product_attention_math(*tensors)
        with torch.no_grad():
            assert torch.equal(attend(*tensors), expected)
        with sdpa_kernel(SDPBackend.MATH):
            assert torch.equal(attend(*tensors), math_backend[0])


def test_derivatives_of_every_kind():
    q, k, v = (drawn(seed, 4, 8) for seed in range(3))

    def loss(x):
        return attend(x, k.to(x.dtype), v.to(x.dtype)).square().sum()

    with fpsim.emulate("fp16"), torch.no_grad():
        found = [torch.func.grad(loss)(q), torch.func.jvp(loss, (q,), (k,))[1], torch.func.hessian(loss)(q)]
        leaf = q.clone().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
            found += [slope, *torch.autograd.grad(slope.sum(), leaf)]
    with sdpa_kernel(SDPBackend.MATH):
        wide = q.double()
        hessian = torch.func.hessian(loss)(wide)
        expected = [torch.func.grad(loss)(wide), torch.func.jvp(loss, (wide,), (k.double(),))[1], hessian]
        expected += [expected[0], hessian.sum((0, 1))]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, fpsim.round(a.detach(), "fp16"))
        assert float((a - b).detach().abs().max()) < 2e-2 * float(b.detach().abs().max())
    assert torch.equal(found[0], found[3])


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_stochastic_draws_repeat_in_a_recomputed_pass(reentrant):
    class Layer(nn.Module):
        def forward(self, *x):
            return attend(*x, dropout_p=0.3)

    def step(again):
        leaves = [drawn(seed, 2, 2, 4, 8).requires_grad_() for seed in range(3)]
        sim = fpsim.run(Layer(), "fp16", "fp16", rounding="stochastic", seed=3)
        torch.manual_seed(2)
        with sim:
            y = checkpoint(sim.model, *leaves, use_reentrant=reentrant) if again else sim.model(*leaves)
            y.sum().backward()
        return [y, *(leaf.grad for leaf in leaves)]

    assert all(map(torch.equal, step(False), step(reentrant is not None)))


def test_a_mapping_rounds_each_role_to_its_own_format():
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    sim = fpsim.run(model, {"activation": "float8_e4m3fn", "gradient": "float8_e5m2", "weight": "bf16", "optimizer": "fp32"})
    seen = {}
    x = drawn(0, 2, 4, 8).requires_grad_()
    with sim:
        q, k, v = (drawn(seed, 2, 2, 4, 8).requires_grad_() for seed in (1, 2, 3))
        y = attend(q, k, v)
        y.backward(drawn(4, 2, 2, 4, 8))
        out = sim.model(x, x, x, need_weights=False)[0]
        seen.update(y=y, out=out)
    for tensor in seen.values():
        assert torch.equal(tensor, fpsim.round(tensor.detach(), "float8_e4m3fn"))
    for leaf in (q, k, v):
        assert torch.equal(leaf.grad, fpsim.round(leaf.grad, "float8_e5m2"))


SHAPES = [((1, 1, 4, 8), (1, 1, 0, 8)), ((1, 1, 0, 8), (1, 1, 3, 8)), ((0, 2, 3, 8), (0, 2, 4, 8)), ((2, 0), (3, 0)),
          ((4, 2, 3, 8), (2, 3, 8)), ((2, 4, 3, 8), (2, 1, 5, 8))]  # fmt: skip


@pytest.mark.parametrize("mode", ["rounded", "wide"])
@pytest.mark.parametrize(("queries", "keys"), SHAPES, ids=str)
def test_shapes_that_are_empty_or_broadcast(queries, keys, mode):
    q, k = drawn(0, *queries).requires_grad_(), drawn(1, *keys).requires_grad_()
    with fpsim.emulate("fp16"), MODES[mode]():
        y = attend(q, k, k)
        y.sum().backward()
    with sdpa_kernel(SDPBackend.MATH):
        expected = attend(q, k, k)
    assert y.shape == expected.shape and q.grad.shape == q.shape and k.grad.shape == k.shape
    assert torch.allclose(y, expected, atol=2e-3, rtol=2e-3, equal_nan=True)


REFUSED = {
    "dtypes": lambda q, k, v: attend(q, k.double(), v),
    "widths": lambda q, k, v: attend(q[..., :3], k, v),
    "lengths": lambda q, k, v: attend(q, k[..., :2, :], v),
    "heads": lambda q, k, v: attend(q[:, :2], k, v, enable_gqa=True),
    "mask": lambda q, k, v: attend(q, k, v, torch.zeros(7, 7)),
    "probability": lambda q, k, v: attend(q, k, v, dropout_p=2.0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    """torch's own kernel reads beyond the end of shorter keys."""
    tensors = [drawn(seed, 2, 3, 5, 8) for seed in range(3)]
    with fpsim.emulate("fp16"), pytest.raises(RuntimeError, match=r"fit|multiplied|dtype|divide|broadcast|must match|between"):
        REFUSED[name](*tensors)


def test_a_unit_has_no_wide_probabilities():
    q, k, v = (drawn(seed, 2, 3, 5, 8) for seed in range(3))
    with fpsim.emulate("fp16", "h100"), MODES["wide"](), pytest.raises(UnsupportedOp, match="leave out sdpa_kernel"):
        attend(q, k, v)


def test_infinities_of_the_accumulator_are_counted():
    q, k = torch.full((1, 4, 64), 100.0), torch.full((1, 4, 64), 90.0)
    sim = fpsim.run(nn.Identity(), "fp16", "fp16")
    with sim:
        assert attend(q, k, torch.ones(1, 4, 64)).isnan().all()
    assert sim.report().total.overflows >= 16


def test_outside_an_emulation_it_is_torchs():
    q, k, v = (drawn(seed, 2, 3, 5, 8).requires_grad_() for seed in range(3))
    y = attend(q, k, v)
    assert type(y.grad_fn).__name__ == "ScaledDotProductFlashAttentionForCpuBackward0"
    assert torch.equal(torch.compile(attend, backend="aot_eager")(q, k, v), y)
    assert torch.vmap(attend)(q, k, v).shape == y.shape
