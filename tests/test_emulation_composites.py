"""What the coverage page says of composite operations is tried: those it calls decomposed run, the others are refused."""

import itertools

import pytest
import torch
from torch import nn

import fpsim
from fpsim.emulation.coverage import _ARRIVALS, coverage
from tests.operators import op_db

aten = torch.ops.aten
COVERAGE = coverage()
X, IMAGE, LABELS = torch.rand(3, 4), torch.rand(2, 3, 6, 6), torch.tensor([1, 0, 3])
CELL = (torch.rand(2, 3), torch.rand(2, 4), torch.rand(4, 3), torch.rand(4, 4), torch.rand(4), torch.rand(4))
SCALES, POINTS = torch.rand(3) + 0.1, torch.zeros(3, dtype=torch.int32)

#: What torch's operator database does not call by that name.
CALLS = {
    "_cast_Float": lambda: aten._cast_Float(X),
    "_convolution": lambda: torch.conv2d(IMAGE, torch.rand(2, 3, 3, 3)),
    "_weight_norm": lambda: torch._weight_norm(X, torch.rand(3, 1), 0),
    "clip": lambda: torch.clip(X, 0.1, 0.5),
    "clip_": lambda: X.clone().clip_(0.1, 0.5),
    "data": lambda: X.data * 1,
    "fake_quantize_per_channel_affine": lambda: torch.fake_quantize_per_channel_affine(X, SCALES, POINTS, 0, 0, 255),
    "fake_quantize_per_tensor_affine": lambda: torch.fake_quantize_per_tensor_affine(X, 0.1, 0, 0, 255),
    "fused_moving_avg_obs_fake_quant": lambda: torch.fused_moving_avg_obs_fake_quant(
        X, torch.ones(1), torch.ones(1), torch.rand(1), torch.rand(1), SCALES[:1], POINTS[:1], 0.1, 0, 255, 0
    ),
    "grid_sampler": lambda: torch.grid_sampler(IMAGE, torch.rand(2, 4, 4, 2), 0, 0, False),
    "gru": lambda: nn.GRU(3, 4)(torch.rand(5, 2, 3)),
    "gru_cell": lambda: nn.GRUCell(3, 4)(torch.rand(2, 3)),
    "lstm": lambda: nn.LSTM(3, 4)(torch.rand(5, 2, 3)),
    "lstm_cell": lambda: nn.LSTMCell(3, 4)(torch.rand(2, 3)),
    "nll_loss_nd": lambda: aten.nll_loss_nd(X, LABELS),
    "nll_loss2d": lambda: aten.nll_loss2d(torch.rand(2, 3, 2, 2), torch.zeros(2, 2, 2, dtype=torch.long)),
    "one_hot": lambda: nn.functional.one_hot(LABELS),
    "pin_memory": lambda: X.pin_memory(),
    "rnn_relu": lambda: nn.RNN(3, 4, nonlinearity="relu")(torch.rand(5, 2, 3)),
    "rnn_relu_cell": lambda: torch.rnn_relu_cell(*CELL),
    "rnn_tanh": lambda: nn.RNN(3, 4)(torch.rand(5, 2, 3)),
    "rnn_tanh_cell": lambda: torch.rnn_tanh_cell(*CELL),
    "slow_conv3d": lambda: aten.slow_conv3d(torch.rand(1, 2, 4, 4, 4), torch.rand(2, 2, 3, 3, 3), [3, 3, 3]),
    "smm": lambda: torch.smm(X.to_sparse(), torch.rand(4, 2)),
    "sparse_coo_tensor": lambda: torch.sparse_coo_tensor(LABELS[None], torch.rand(3)),
    "thnn_conv2d": lambda: aten.thnn_conv2d(IMAGE, torch.rand(2, 3, 3, 3), [3, 3]),
}  # fmt: skip


def _samples():
    """(database entry, function) of the composite operations that it has, by name; aliases and in-place forms too."""
    found = {}
    for entry in op_db:
        functions = [(name, entry.op) for name in {entry.name, entry.aten_name, entry.name.rpartition(".")[2]} - {None}]
        functions += [(alias.name, alias.op) for alias in entry.aliases]
        functions += [(f"{name}_", entry.inplace_variant) for name, _ in functions if entry.inplace_variant is not None]
        functions += [(f"{alias.name}_", alias.inplace_variant) for alias in entry.aliases if alias.inplace_variant is not None]
        for name, function in functions:
            name = name.replace(".", "_")
            if name not in CALLS and function is not None and torch.float32 in entry.dtypes:
                if COVERAGE.get(name) == "decomposed" or name in _ARRIVALS:
                    found.setdefault(name, []).append((entry, function))
    return found


SAMPLES = _samples()


def _calls(name):
    if name in CALLS:
        return [CALLS[name]]
    calls = []
    for entry, function in SAMPLES[name]:
        for sample in itertools.islice(entry.sample_inputs("cpu", torch.float32), 2):
            if name.endswith("_") and (sample.broadcasts_input or not isinstance(sample.input, torch.Tensor)):
                continue
            first = sample.input.clone() if name.endswith("_") else sample.input
            calls.append(lambda f=function, x=first, s=sample: f(x, *s.args, **s.kwargs))
    return calls


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted({*SAMPLES, *CALLS}))
def test_a_composite_operation_does_what_the_page_says(name):
    refused = []
    for call in _calls(name):
        with torch.no_grad(), fpsim.emulate(fmt="fp16"):
            try:
                call()
            except fpsim.UnsupportedOp as error:
                refused.append(str(error).splitlines()[0])
    assert bool(refused) == (COVERAGE[name] == "unsupported"), refused


def test_most_composite_operations_are_tried():
    """The rest are helpers of torch's own (names that begin with an underscore), or make no numbers."""
    decomposed = {name for name, family in COVERAGE.items() if family == "decomposed"}
    assert {"_weight_norm", "fake_quantize_per_tensor_affine"} <= decomposed  # what they arrive as has rules
    assert {"fft_fft", "istft"} <= decomposed
    assert "linalg_eigvals" not in decomposed  # what it arrives as has none
    assert len(decomposed & {*SAMPLES, *CALLS}) > 220


@pytest.mark.parametrize("inplace", [True, False])
def test_torch_itself_refuses_no_model(inplace):
    """fmt="fp32" with accumulate="native": complex parameters, 16-bit buffers, float64."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.turn = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
            self.register_buffer("small", torch.tensor([0.1, 0.2], dtype=torch.bfloat16))
            self.wide = nn.Linear(2, 2).double()

        def forward(self, x):
            return (self.turn * x + self.small).abs() + self.wide(x.double())

    model, x = Mixed(), torch.rand(3, 2)
    expected = model(x)
    sim = fpsim.run(model, "fp32", "native", inplace=inplace)
    assert torch.equal(sim(x), expected)
    with sim:
        sim(x).sum().backward()
        torch.optim.SGD(sim.parameters(), lr=0.1).step()
    assert not torch.equal(sim(x), expected)
