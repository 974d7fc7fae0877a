"""Jagged nested tensors: each sequence is computed as it is alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import fpsim
from tests.halves import halves, tensor_of

LENGTHS = (3, 5, 1)
POLICIES = [("fp16", "kernel"), ("fp16", "primitive"), ({"*": "fp16", "weight": "fp32"}, "kernel")]


def sequences():
    return [tensor_of(halves(length, 8, seed=length)) for length in LENGTHS]


def jagged(parts, **options):
    return torch.nested.nested_tensor(parts, layout=torch.jagged, **options)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        """Of one sequence (length, 8), or of jagged ones (sequences, length, 8)."""
        heads = [item.unflatten(-1, (2, 4)).transpose(-3, -2) for item in self.inner(self.norm(x)).chunk(3, -1)]
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)
        return x + functional.gelu(self.outer(mixed.transpose(-3, -2).flatten(-2)))


@pytest.mark.parametrize(("fmt", "granularity"), POLICIES)
def test_a_layer_gives_what_it_gives_of_each_sequence(fmt, granularity):
    torch.manual_seed(0)
    sim = fpsim.run(Layer(), fmt, "fp16", granularity=granularity)
    with sim:
        found = sim(jagged(sequences()))
        alone = [sim(part) for part in sequences()]
        sums = found.to_padded_tensor(0.0).sum(1)
        weight = sim.outer.weight
        (gradient,) = torch.autograd.grad(found.values().sum(), weight, retain_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(found.unbind(), alone, strict=True))
    assert torch.equal(found.values().half().float(), found.values()) and sums.shape == (3, 8)
    assert torch.equal(gradient.half().float(), gradient)


def test_under_native_too():
    torch.manual_seed(0)
    layer = Layer().half()
    with fpsim.emulate("native", "fp16"), torch.no_grad():
        found, alone = layer(jagged([part.half() for part in sequences()])), [layer(part.half()) for part in sequences()]
    assert all(torch.equal(one, other) for one, other in zip(found.unbind(), alone, strict=True))


def test_padding_is_rounded_and_observers_see_the_operations_on_values():
    with fpsim.emulate("fp16", "fp16", observe="range") as emulation:
        padded = (jagged(sequences()) * 1.1).to_padded_tensor(0.1)
        back = torch.nested.narrow(padded, 1, 0, torch.tensor(LENGTHS), layout=torch.jagged)
    assert float(padded[2, 4, 0]) == 0.0999755859375
    assert torch.equal(back.unbind()[0], padded[0, :3])
    assert "mul" in str(emulation.report())


def test_the_strided_layout_is_refused_with_what_to_do():
    made = torch.nested.nested_tensor(sequences(), layout=torch.strided)
    with fpsim.emulate("fp16"):
        for call in (lambda: torch.nested.nested_tensor(sequences()), lambda: made * 2.5):
            with pytest.raises(fpsim.UnsupportedOp, match=r"layout=torch\.jagged"):
                call()
        assert torch.equal(made.unbind()[0], sequences()[0])


def test_an_encoder_with_a_mask_takes_the_path_of_padded_tensors():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    with torch.no_grad():
        found = fpsim.run(encoder, "fp16")(
            tensor_of(halves(2, 5, 8)), src_key_padding_mask=torch.arange(5) > torch.tensor([[4], [2]])
        )
    assert torch.equal(found.half().float(), found)


@pytest.mark.filterwarnings("ignore")
def test_masked_tensors_are_their_data():
    x = tensor_of(halves(3, 4))
    with fpsim.emulate("fp16", "fp16"):
        masked = torch.masked.masked_tensor(x, x > 0, requires_grad=True)
        scaled = masked * 1.1
        scaled.sum().backward()
        assert torch.equal(scaled.get_data().detach(), x * 1.1)
        assert torch.equal(masked.grad.get_data()[x > 0], torch.ones(int((x > 0).sum())) * 1.1)
