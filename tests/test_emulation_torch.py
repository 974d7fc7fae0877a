"""Parts of torch around models: recomputation, transforms, compilation, attention, loaders, processes, refusals."""

import os
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import fpsim
from fpsim.emulation import OutsideContext, UnsupportedOp
from fpsim.emulation.dispatch import module_hooks
from tests import quick_python
from tests.frequency import often

X = torch.linspace(-2, 2, 12).reshape(3, 4)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def is_fp16(tensor):
    values = tensor.detach().numpy()
    return np.array_equal(fpsim.round(values, "fp16"), values)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_passes_give_the_same_gradients(reentrant):
    gradients = []
    for recompute in (False, True):
        sim = fpsim.run(mlp(), "fp16", "fp16")
        x = fpsim.round(X, "fp16").float().requires_grad_()
        with sim:
            y = checkpoint(sim.model, x, use_reentrant=reentrant) if recompute else sim.model(x)
            y.sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in sim.parameters())])
    assert all(map(torch.equal, *gradients))


def per_sample(sim):
    parameters = {name: value.detach() for name, value in sim.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(sim.model, parameters, (x,)).sum()

    return list(torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, X).values())


TRANSFORMS = {
    "vmap": lambda sim: [torch.vmap(lambda x: torch.tanh(x) * x.sum())(X)],
    "grad": lambda sim: [torch.func.grad(lambda x: torch.tanh(x).sum())(X)],
    "jacobians": lambda sim: [torch.func.jacrev(sim.model)(X[0]), torch.func.jacfwd(sim.model)(X[0])],
    "hessian": lambda sim: [torch.func.hessian(lambda x: sim.model(x).sum())(X[0])],
    "gradients of samples": per_sample,
}


@pytest.mark.filterwarnings("ignore:.*jit.*:DeprecationWarning")
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_function_transforms(transform):
    sim = fpsim.run(mlp(), "fp16")
    with sim:
        assert all(map(is_fp16, TRANSFORMS[transform](sim)))


def test_compiled_code_runs_as_written_and_says_so_once():
    sim = fpsim.run(mlp(), "fp16", "fp16")
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    module_hooks.warn_of_compiled_code.cache_clear()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with sim:
            for _ in range(2):
                inside = torch.compile(sim.model, backend=backend)(X)
        outside = torch.compile(sim, backend=backend)(X)
    assert torch.equal(inside, sim(X))
    assert torch.equal(outside, sim(X))
    assert not traced
    assert sum("torch.compile does nothing under emulation" in str(item.message) for item in seen) == 1


@pytest.mark.filterwarnings("ignore:torch.compile does nothing under emulation", "ignore:Using `torch.compile.module.` when")
def test_code_compiled_whole_runs_as_written_and_is_compiled_outside_as_ever():
    layer, traced = nn.Linear(3, 2), []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    module = torch.compile(layer, backend=backend, fullgraph=True)
    function = torch.compile(lambda x: (x / 3).relu(), backend=backend, fullgraph=True)
    for _ in range(2):
        with fpsim.emulate("fp16"):
            inside = [function(X[:, :3]), module(X[:, :3])]
            expected = [(X[:, :3] / 3).relu(), layer(X[:, :3])]
        assert all(torch.equal(a, b) for a, b in zip(inside, expected, strict=True))
    assert not traced
    assert torch.equal(module(X[:, :3]), layer(X[:, :3])) and len(traced) == 1


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("fmt", ["fp16", {"*": "fp16"}], ids=str)
def test_flex_attention_goes_step_by_step(fmt):
    flex_attention = pytest.importorskip("torch.nn.attention.flex_attention").flex_attention
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 2, 5, 4, generator=generator).half().float() for _ in range(3))
    bias = torch.randn(5, 5, generator=generator)
    with fpsim.emulate(fmt, "fp16"):
        found = flex_attention(query, key, value, score_mod=lambda score, b, h, i, j: score + bias[i, j])
        expected = ((query @ key.mT) * 0.5 + bias).softmax(-1) @ value
    assert torch.equal(found, expected) and torch.equal(found, found.half().float())


def test_tensors_without_numbers_pass():
    for fmt in ("fp16", "native", {"*": "fp16", "gradient": "bf16"}):
        with fpsim.emulate(fmt):
            x = torch.empty(3, 4, device="meta")
            assert (x @ x.T).relu().sum(0).shape == (3,)
            assert nn.Linear(4, 2, device="meta")(x).shape == (3, 2)


def test_inference_mode_gives_the_same():
    sim = fpsim.run(nn.LSTM(4, 3), "fp16", "fp16")
    with torch.inference_mode(), sim:
        assert torch.equal(sim(X)[0], sim(X)[0])
        inferred = sim(X)[0]
    assert torch.equal(inferred, sim(X)[0])


class Thirds(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.tensor(float(index)) / 3


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_loaders(start):
    with fpsim.emulate("fp16"):
        loader = torch.utils.data.DataLoader(Thirds(), batch_size=3, num_workers=1, multiprocessing_context=start)
        batches = [batch * 1 for batch in loader]
    assert torch.equal(torch.cat(batches), fpsim.round(torch.arange(6.0) / 3, "fp16"))


def test_a_backward_pass_after_the_block_raises():
    model = mlp()
    with fpsim.emulate("fp16"):
        loss = model(X).sum()
    with pytest.raises(OutsideContext):
        loss.backward()
    with fpsim.emulate("fp16"):
        model(X).sum().backward()
    assert all(is_fp16(parameter.grad) for parameter in model.parameters())


REFUSED = {
    "half complex": lambda: torch.ones(3, dtype=torch.complex32) + 1,
    "nested": lambda: torch.nested.nested_tensor([X, X[:2]]) * 2,
    "variance of complex numbers": lambda: torch.complex(torch.eye(3), torch.eye(3)).var(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_raises(name):
    with fpsim.emulate("fp16"), pytest.raises(UnsupportedOp):
        REFUSED[name]()


def test_the_gradient_of_a_transposed_convolution_with_a_large_output_padding():
    """The output padding may exceed the stride, up to the dilation."""
    x = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0)).half().float().requires_grad_()
    weight = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1)).half().float()
    how = {"stride": 2, "dilation": 4, "output_padding": 3}
    with fpsim.emulate("fp16", "fp32"):
        functional.conv_transpose1d(x, weight, **how).sum().backward()
    wide = x.detach().double().requires_grad_()
    functional.conv_transpose1d(wide, weight.double(), **how).sum().backward()
    assert torch.equal(x.grad, fpsim.round(wide.grad, "fp16").float())  # few terms: the sums are exact in fp32


def test_products_with_factors_round_once_to_the_format():
    generator = torch.Generator().manual_seed(0)
    c, a, b = (torch.randn(*shape, generator=generator).half().float() for shape in ((5, 10), (5, 3), (3, 10)))
    with fpsim.emulate("fp16", "fp32"):
        actual = torch.addmm(c, a, b, beta=0.2, alpha=0.6)
    total = np.zeros((5, 10), np.float32)
    for k in range(3):
        total = total + a.numpy()[:, k : k + 1] * b.numpy()[k]
    expected = (total * np.float32(0.6) + c.numpy() * np.float32(0.2)).astype(np.float16)
    assert np.array_equal(actual.numpy(), expected.astype(np.float32))


RANKS = """
import sys, torch, torch.distributed as dist, fpsim
from torch import nn

rank, size, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=size)
fmt = "fp16" if sys.argv[5] == "float32" else "native"
dtype = getattr(torch, sys.argv[5])
torch.manual_seed(0)
sim = fpsim.run(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype), fmt, "fp16")
model = nn.parallel.DistributedDataParallel(sim)
torch.manual_seed(1 + rank)
x = torch.randn(3, 4).to(dtype)
order = torch.tensor([[2048.0, 1.0, -2048.0][rank % 3]], dtype=dtype)
with sim:
    model(x).sum().backward()
    dist.all_reduce(order)
with fpsim.emulate(fmt, "fp16", all_reduce="ring"):
    own, most, part = order.clone(), order.clone(), torch.empty(1, dtype=dtype)
    dist.reduce(own, 1)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    rows = [[2048.0, 3.0, 1.0], [1.0, 0.5, 2048.0], [-2048.0, 1.0, 1.0]]
    dist.reduce_scatter_tensor(part, torch.tensor(rows[rank][:size], dtype=dtype))
torch.save((x, [parameter.grad for parameter in sim.parameters()], order, (own, most, part)), f"{out}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("size", "dtype"),
    often([(2, "float32"), (3, "float32"), (2, "float16")], [(2, "float32")]),
)
def test_processes_sum_gradients_in_the_order_of_their_ranks(size, dtype, tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    root = str(Path(fpsim.__file__).parents[1])
    ends = [str(size), f"{tmp_path}/store", str(tmp_path), dtype]
    commands = [[quick_python.executable(), str(script), str(rank), *ends] for rank in range(size)]
    environment = {**os.environ, "PYTHONPATH": root, "GLOO_SOCKET_IFNAME": "lo"}
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, errors
    ranks = [torch.load(f"{tmp_path}/{rank}.pt") for rank in range(size)]
    alone = []
    for x, *_ in ranks:  # each rank's own gradients, divided as the script's library divides them
        sim = fpsim.run(mlp().to(x.dtype), "fp16" if dtype == "float32" else "native", "fp16")
        with sim:
            sim(x).sum().backward()
            alone.append([parameter.grad * (1 / size) for parameter in sim.parameters()])
    total = [torch.zeros_like(gradient, dtype=torch.float16) for gradient in alone[0]]
    for gradients in alone:
        total = [a + b.half() for a, b in zip(total, gradients, strict=True)]
    for rank, (_, gradients, order, (own, most, part)) in enumerate(ranks):
        assert all(torch.equal(a.half(), b) for a, b in zip(gradients, total, strict=True))
        assert float(order) == {2: 2048.0, 3: 0.0}[size]  # 2048 + 1 is 2048 in fp16
        assert float(own) == (2 if rank == 1 else 1) * float(order) if size == 2 else float(own) == 0.0
        assert float(most) == float(order)
        assert float(part) == {2: [2048.0, 3.5], 3: [1.0, 4.5, 2048.0]}[size][rank]  # (1 - 2048) + 2048; (1 + 1) + 2048
