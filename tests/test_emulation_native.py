"""fmt="native": a model in half means what the float32 model means under fmt="fp16", bit for bit."""

import pytest
import torch
import torch.nn.functional as functional
from torch import nn

import fpsim
from fpsim.emulation import UnsupportedOp

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Attention(nn.Module):
    """An embedding, a transformer block with a causal mask, a head."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 16), nn.Parameter(torch.randn(6, 16))
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.query, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.inner, self.head = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)), nn.Linear(16, 11)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places
        q, k, v = self.query(self.first(x)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + functional.dropout(self.out(y.transpose(1, 2).flatten(-2)), 0.1, self.training)
        return self.head(x + self.inner(self.second(x))).mean(1)


def mlp():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 11))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2),
        nn.ConvTranspose2d(4, 3, 2), nn.GroupNorm(1, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 11),
    )  # fmt: skip


MODELS = {
    "mlp": (mlp, lambda: torch.randn(6, 12)),
    "cnn": (cnn, lambda: torch.randn(6, 1, 8, 8)),
    "attention": (Attention, lambda: torch.randint(0, 11, (6, 6))),
}
OPTIMIZERS = {
    "sgd": lambda parameters, **how: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3, **how),
    "adamw": lambda parameters, **how: torch.optim.AdamW(parameters, lr=0.01, eps=1e-4, **how),
}
LOOP, LISTS, FUSED = {"foreach": False}, {"foreach": True}, {"fused": True}


def train(model, draw, optimizer_name, how, dtype, **policy):
    """Everything that three training steps make."""
    torch.manual_seed(3)
    sim = fpsim.run(model, **policy)
    optimizer = OPTIMIZERS[optimizer_name](sim.parameters(), **how)
    seen = []
    with sim:
        for _ in range(3):
            x, target = draw(), torch.randint(0, 11, (6,))
            if x.is_floating_point():
                x = x.to(dtype)
            optimizer.zero_grad()
            y = sim(x)
            loss = functional.cross_entropy(y, target)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(sim.parameters(), 1.0)
            seen += [y.detach(), loss.detach(), norm, *(parameter.grad.clone() for parameter in sim.parameters())]
            optimizer.step()
            seen += [item.detach().clone() for item in (*sim.parameters(), *sim.buffers())]
    for state in optimizer.state.values():
        seen += [entry for key, entry in state.items() if key != "step" and isinstance(entry, torch.Tensor)]
    sim.eval()
    with torch.no_grad():
        seen.append(sim(x))
    return seen, sim.report().total


@pytest.mark.parametrize(
    ("optimizer", "how"), [("sgd", LOOP), ("adamw", LISTS), ("adamw", FUSED)], ids=["sgd", "lists", "fused"]
)
@pytest.mark.parametrize("fmt", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_the_law(name, fmt, optimizer, how):
    make, draw = MODELS[name]
    torch.manual_seed(0)
    model = make()
    carried, counts = train(model, draw, optimizer, how, torch.float32, fmt=fmt, accumulate="fp32")
    native, native_counts = train(model.to(DTYPES[fmt]), draw, optimizer, how, DTYPES[fmt], fmt="native", accumulate="fp32")
    assert len(carried) == len(native)
    for a, b in zip(carried, native, strict=True):
        assert not b.is_floating_point() or b.dtype is DTYPES[fmt]
        assert torch.equal(a, b.to(a.dtype))
    assert counts.updates == native_counts.updates > 0
    assert counts.lost == native_counts.lost


def test_the_law_with_a_half_accumulator():
    torch.manual_seed(0)
    model = cnn()
    carried, _ = train(model, MODELS["cnn"][1], "sgd", LOOP, torch.float32, fmt="fp16", accumulate="fp16:pairwise")
    native, _ = train(model.half(), MODELS["cnn"][1], "sgd", LOOP, torch.float16, fmt="native", accumulate="fp16:pairwise")
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(carried, native, strict=True))


def test_float32_and_float64_are_torchs_own():
    torch.manual_seed(0)
    x = torch.randn(20, 20)
    operations = [torch.exp, lambda a: a @ a, lambda a: a.softmax(0), torch.linalg.inv, lambda a: torch.fft.rfft(a), torch.sum]
    for y in (x, x.double()):
        with fpsim.emulate("native"):
            emulated = [operation(y) for operation in operations]
        with torch.backends.mkldnn.flags(enabled=False):
            assert all(torch.equal(a, operation(y)) for a, operation in zip(emulated, operations, strict=True))


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("name", MODELS)
def test_autocast_and_loss_scaling(name, dtype):
    make, draw = MODELS[name]
    torch.manual_seed(0)
    sim = fpsim.run(make(), "native")
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=dtype is torch.float16)
    start = [parameter.detach().clone() for parameter in sim.parameters()]
    with sim:
        for _ in range(2):
            with torch.autocast("cpu", dtype=dtype):
                y = sim(draw())
                loss = functional.cross_entropy(y.float(), torch.randint(0, 11, (6,)))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            assert all(parameter.grad.dtype is torch.float32 for parameter in sim.parameters())
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert all(parameter.dtype is torch.float32 and torch.isfinite(parameter).all() for parameter in sim.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(start, sim.parameters(), strict=True))
    assert sim.report().total.elements > 0


def test_autocast_rounds_what_it_casts():
    layer, x = nn.Linear(30, 4), torch.randn(5, 30)
    with fpsim.emulate("native"), torch.autocast("cpu", dtype=torch.float16):
        y = layer(x)
    sim = fpsim.run(layer, "fp16")
    assert y.dtype is torch.float16
    assert torch.equal(y.float(), sim(x))


def test_mixed_operands_follow_type_promotion():
    h, f = torch.tensor([1.0, 0.1]).half(), torch.tensor([0.3, 1e-9])
    with fpsim.emulate("native"):
        assert torch.equal(h + f, h.float() + f)
        assert (h * torch.tensor(0.1)).dtype is torch.float16
        assert torch.equal(torch.cat([h, f]), torch.cat([h.float(), f]))
        assert (h + torch.arange(2)).dtype is torch.float16
        assert (h + h.bfloat16()).dtype is torch.float32
        total = h.clone()
        total += f
        assert torch.equal(total, (h.float() + f).half())
        assert torch.equal(h.sum(dtype=torch.float32), h.float().sum())
        assert f.sum(dtype=torch.float16).dtype is torch.float16
        target = torch.zeros(2)
        target.copy_(h)
        assert torch.equal(target, h.float())
        third = torch.zeros(2, dtype=torch.bfloat16).copy_(f)
        assert torch.equal(third.float(), fpsim.round(f, "bf16"))
        with pytest.raises(UnsupportedOp, match="different dtypes"):
            h @ f


def test_a_tensor_rounds_once_from_float64():
    x = torch.tensor([1 + 2.0**-11 + 2.0**-40], dtype=torch.float64)
    with fpsim.emulate("native"):
        assert float(x.half()) == 1 + 2.0**-10


def test_normalization_with_float32_parameters_keeps_them_wide():
    torch.manual_seed(0)
    layer, x = nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5).half()
    reference = nn.BatchNorm2d(3)
    expected = reference(x.float())
    with fpsim.emulate("native"):
        y = layer(x)
        y.sum().backward()
    assert y.dtype is torch.float16
    torch.testing.assert_close(y.float(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(layer.running_var, reference.running_var, rtol=1e-6, atol=0)
    assert layer.weight.grad.dtype is torch.float32


def test_what_has_no_rule_or_no_arithmetic_raises():
    with fpsim.emulate("native"):
        with pytest.raises(UnsupportedOp, match="complex"):
            torch.polar(torch.ones(4).half(), torch.ones(4).half())
        with pytest.raises(UnsupportedOp, match="complex"):
            torch.complex(torch.ones(4).bfloat16(), torch.ones(4).bfloat16())
        with pytest.raises(UnsupportedOp, match="float8"):
            torch.ones(2, dtype=torch.float8_e8m0fnu).clone()


def test_the_policy_shows():
    sim = fpsim.run(mlp().bfloat16(), "native")
    assert "fmt=native" in repr(sim)
    assert next(sim.parameters()).dtype is torch.bfloat16


def test_the_command_line_knows_it(tmp_path):
    from click.testing import CliRunner

    from fpsim.cli import main

    script = tmp_path / "script.py"
    script.write_text("import torch\nprint((torch.ones(1).half() / 3).item(), (torch.ones(1) / 3).item())\n")
    result = CliRunner().invoke(main, ["run", str(script), "--fmt", "native"])
    assert result.exit_code == 0, result.output
    half, single = map(float, result.stdout.split())
    assert (half, single) == (float(torch.tensor(1 / 3).half()), float(torch.tensor(1 / 3)))
    assert "fmt=native" in result.stderr
