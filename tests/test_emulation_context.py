"""Entering, leaving, and what raises outside or inside."""

import os
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import nn

import fpsim
from fpsim.emulation import TABLE, OutsideContext, UnsupportedOp, UnsupportedTensor, register, unregister


def mlp():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10))


def test_backward_outside_the_context_raises():
    sim = fpsim.run(mlp(), "fp16")
    with pytest.raises(OutsideContext, match="with sim"):
        sim(torch.randn(2, 12)).sum().backward()
    with sim:
        loss = sim(torch.randn(2, 12)).sum()
    with pytest.raises(OutsideContext):
        loss.backward()
    x = torch.randn(2, 12, requires_grad=True)
    for parameter in sim.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(OutsideContext):
        sim(x).sum().backward()


def test_an_output_inside_a_container_is_guarded():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return {"pair": [x * self.scale, x]}

    sim = fpsim.run(Pair(), "fp16")
    with pytest.raises(OutsideContext):
        sim(torch.ones(3))["pair"][0].sum().backward()


def test_an_optimizer_step_outside_the_context_raises():
    sim = fpsim.run(mlp(), "fp16")
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.1)
    with sim:
        sim(torch.randn(2, 12)).sum().backward()
    before = sim.model[0].weight.clone()
    with pytest.raises(OutsideContext, match=r"SGD\.step\(\)"):
        optimizer.step()
    assert torch.equal(sim.model[0].weight, before)


def test_an_optimizer_of_the_original_model_raises():
    model = mlp()
    sim = fpsim.run(model, "fp16")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sim, pytest.raises(OutsideContext, match=r"sim\.parameters\(\)"):
        optimizer.step()
    optimizer.step()  # outside, it trains the original model


def test_no_grad_needs_nothing():
    sim = fpsim.run(mlp(), "fp16")
    with torch.no_grad():
        assert not sim(torch.randn(2, 12)).requires_grad
    with torch.inference_mode():
        inferred = sim(torch.ones(2, 12))
    assert torch.equal(inferred, sim(torch.ones(2, 12)).detach())


def test_entry_is_counted():
    sim = fpsim.run(mlp(), "fp16")
    third = torch.tensor(1.0) / 3
    with sim:
        with sim:
            sim(torch.randn(2, 12))
        inside = torch.tensor(1.0) / 3
    assert float(inside) == float(np.float16(1 / 3))
    assert torch.equal(torch.tensor(1.0) / 3, third)


def test_two_policies_do_not_nest():
    with fpsim.emulate("fp16"), pytest.raises(RuntimeError, match="already emulating"), fpsim.emulate("bf16"):
        pass
    with fpsim.emulate("fp16"), fpsim.emulate("fp16"):
        assert float(torch.tensor(1.0) / 3) == float(np.float16(1 / 3))


def test_switches_are_restored():
    def switches():
        return (
            torch.backends.mha.get_fastpath_enabled(),
            torch._C._get_mkldnn_enabled(),
        )

    before = switches()
    with pytest.raises(KeyError), fpsim.emulate("fp16"):
        assert switches() == (False, False)
        with fpsim.emulate("fp16"):
            pass
        assert switches() == (False, False)
        raise KeyError
    assert switches() == before


def test_how_attention_is_computed_stays_the_callers_choice():
    """torch's switches of its backends say how probabilities are read: entering touches none of them."""

    def switches():
        cuda = torch.backends.cuda
        fused = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()
        return *fused, cuda.math_sdp_enabled(), cuda.fp16_bf16_reduction_math_sdp_allowed()

    before = switches()
    with fpsim.emulate("fp16"):
        assert switches() == before


def test_another_thread_is_not_emulated():
    seen = []
    with fpsim.emulate("fp16"):
        worker = threading.Thread(target=lambda: seen.append(torch.tensor(1.0) / 3))
        worker.start()
        worker.join()
    assert torch.equal(seen[0], torch.tensor(1.0) / 3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_without_it():
    reader, writer = os.pipe()
    sim = fpsim.run(mlp(), "fp16")
    with sim:
        child = os.fork()
        if child == 0:
            third = float(torch.tensor(1.0) / 3)
            again = float(sim(torch.ones(1, 12))[0, 0].detach())
            os.write(writer, np.array([third, again]).tobytes())
            os._exit(0)
        os.waitpid(child, 0)
        assert float(torch.tensor(1.0) / 3) == float(np.float16(1 / 3))
    third, again = np.frombuffer(os.read(reader, 16))
    assert third == np.float32(1 / 3)
    assert again == float(sim(torch.ones(1, 12))[0, 0].detach())


def test_data_loader_workers_inside_the_context():
    data = torch.utils.data.TensorDataset(torch.arange(8.0) / 3)
    with fpsim.emulate("fp16"):
        loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context="fork")
        batches = [batch * 1 for (batch,) in loader]
    assert torch.equal(torch.cat(batches), fpsim.round(torch.arange(8.0) / 3, "fp16"))


def test_an_operation_without_a_rule_raises_and_says_how_to_add_one():
    class Layer(nn.Module):
        def forward(self, x):
            return torch.complex(x, x).var()

    sim = fpsim.run(nn.Sequential(nn.Identity(), Layer()), "fp16")
    with pytest.raises(UnsupportedOp) as raised:
        sim(torch.randn(4, 4))
    text = str(raised.value)
    for part in ("aten.var.correction", "complex64[4, 4]", "module '1'", "fpsim.emulation.register"):
        assert part in text


def test_every_other_operation_raises():
    """Whatever torch has and the table does not: called with a float tensor, it never computes."""
    x = torch.eye(3)
    calls = [
        lambda x: torch.dequantize(x),
        lambda x: torch.complex(x, x).var(),
    ]
    with fpsim.emulate("fp16"):
        for call in calls:
            with pytest.raises(UnsupportedOp):
                call(x)


def test_a_rule_from_outside():
    with torch.library._scoped_library("fpsim_test", "DEF") as library:
        library.define("double(Tensor x) -> Tensor")
        library.impl("double", lambda x: x * 2, "CPU")
        op = torch.ops.fpsim_test.double.default
        x = torch.tensor([0.1])
        with fpsim.emulate("fp16"), pytest.raises(UnsupportedOp, match=r"fpsim_test\.double"):
            op(x)
        try:

            @register(op)
            def double(machine, x):
                return machine.finish(machine.operand(x) * 2)

            with fpsim.emulate("fp16"):
                assert float(op(x)) == 2 * float(np.float16(0.1))
            with pytest.raises(ValueError, match="already has a rule"):
                register(op)(double)
        finally:
            unregister(op)
    with pytest.raises(TypeError, match="overload"):
        register(torch.add)


def test_every_view_in_the_table_is_one():
    families = {entry.family for entry in TABLE.values()}
    assert {
        "view",
        "exact",
        "elementwise",
        "elementary",
        "matmul",
        "convolution",
        "reduction",
        "normalization",
    } <= families
    for op, entry in TABLE.items():
        if entry.family == "view":
            returned = op._schema.returns
            assert (
                op.is_view
                or any(item.alias_info for item in returned)
                or "unsafe" in op._schema.name
                or op._schema.name.endswith("_")
            )


@pytest.mark.parametrize("dtype", [torch.complex32, torch.float8_e8m0fnu])
def test_other_dtypes_raise(dtype):
    with fpsim.emulate("fp16"), pytest.raises(UnsupportedTensor, match=str(dtype)):
        torch.zeros(2).to(dtype) + 1
    tensor = torch.ones(2, dtype=dtype)
    for operation in (
        torch.neg,
        lambda x: x + 1,
        lambda x: x.view(1, 2) + 1,
        lambda x: x.sum(),
        lambda x: x[None] @ x[:, None],
        lambda x: x.mul_(2),
    ):
        with fpsim.emulate("fp16"), pytest.raises(UnsupportedTensor):
            operation(tensor)
    with pytest.raises(UnsupportedTensor, match=str(dtype)):
        fpsim.run(nn.Linear(2, 2).to(dtype), "fp16")


def test_loss_scaling_names_the_format_for_it():
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    with fpsim.emulate("fp16"), pytest.raises(UnsupportedOp, match="native"):
        scaler.scale((parameter * 2).sum()).backward()
        scaler.step(optimizer)


def test_float64_means_itself():
    x = torch.rand(5, dtype=torch.float64)
    expected = [x.exp(), x.sum(), x @ x, x / 3, torch.softmax(x, 0), x.std(), x.sqrt()]
    with fpsim.emulate("fp16"):
        actual = [x.exp(), x.sum(), x @ x, x / 3, torch.softmax(x, 0), x.sqrt()]
        mixed = x + torch.ones(5)
    del expected[5]
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert mixed.dtype is torch.float64
    with pytest.raises(ValueError, match="float64"):
        fpsim.run(nn.Linear(2, 2).double(), "fp16")


def test_integers_and_booleans_pass():
    x = torch.arange(10)
    with fpsim.emulate("fp16"):
        assert torch.equal(x + 1, torch.arange(1, 11))
        assert torch.equal(x * x, torch.tensor([i * i for i in range(10)]))
        assert bool((x > 3).any())
        assert int(x.sum()) == 45
        assert (x == 3).float().sum() == 1


def test_models_elsewhere_and_half_made_ones_raise():
    with pytest.raises(UnsupportedTensor, match="meta"):
        fpsim.run(nn.Linear(2, 2, device="meta"), "fp16")
    with pytest.raises(ValueError, match="not initialized"):
        fpsim.run(nn.LazyLinear(2), "fp16")
    with pytest.raises(TypeError, match="Module"):
        fpsim.run(lambda x: x, "fp16")
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        fpsim.run(nn.Linear(2, 2), "fp16")

    class Uncopyable(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("no")

    with pytest.raises(ValueError, match="inplace=True"):
        fpsim.run(Uncopyable(2, 2), "fp16")
    fpsim.run(Uncopyable(2, 2), "fp16", inplace=True)(torch.ones(1, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fmt": "fp17"}, "fp16"),
        ({"fmt": "fp64"}, "float32"),
        ({"fmt": "e8m0fnu"}, "zero"),
        ({"accumulate": "fp16:sideways"}, "sequential"),
        ({"rounding": "sideways"}, "nearest-even"),
        ({"rounding": "stochastic"}, "seed"),
        ({"seed": 1}, "stochastic"),
        ({"granularity": "sand"}, "kernel"),
    ],
)
def test_bad_arguments_say_what_there_is(arguments, message):
    with pytest.raises(ValueError, match=message):
        fpsim.run(nn.Linear(2, 2), **arguments)
    with pytest.raises(ValueError, match=message), fpsim.emulate(**arguments):
        pass


def test_what_is_not_built_says_so():
    with pytest.raises(UnsupportedOp, match="primitive"), fpsim.emulate("fp16", granularity="primitive"):
        torch.linalg.svd(torch.zeros(2, 2))
    with pytest.raises(UnsupportedOp, match="elementary"), fpsim.emulate("fp16", rounding="up"):
        torch.zeros(2).exp()


def test_flush_to_zero_is_refused():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    try:
        with pytest.raises(ValueError, match="flush"):
            fpsim.run(nn.Linear(2, 2), "fp16")
        with pytest.raises(ValueError, match="flush"), fpsim.emulate("fp16"):
            pass
    finally:
        torch.set_flush_denormal(False)


def test_nan_in_a_weight_stays():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    y = fpsim.run(layer, "fp16", "fp16")(torch.ones(4, 3))
    assert torch.isnan(y[:, 0]).all()
    assert torch.isfinite(y[:, 1]).all()


def test_the_policy_shows():
    sim = fpsim.run(mlp(), "bf16", "fp32")
    assert "fmt=bf16" in repr(sim)
    assert "Linear(in_features=12" in repr(sim)
    assert "fmt=bf16" in str(sim.report())


def test_a_compiled_model_runs_eagerly():
    sim = fpsim.run(mlp(), "fp16")
    x = torch.ones(2, 12)
    with sim:
        assert torch.equal(torch.compile(sim.model)(x), sim(x))


def test_tensors_modified_through_another_dtype_are_read_anew():
    with fpsim.emulate("fp16"):
        x = torch.zeros(2)
        x.view(torch.int32).fill_(0x3DCCCCCD)  # 0.1 in float32
        assert float(torch.neg(x)[0]) == -float(np.float16(0.1))
        y = torch.zeros(2)
        y.view(torch.int32).add_(0x3DCCCCCD)
        assert float(torch.neg(y)[0]) == -float(np.float16(0.1))


def test_a_minimal_script():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    sim = fpsim.run(model, fmt="fp16", accumulate="fp16")
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.01)
    x, t = torch.randn(32, 8), torch.randint(0, 4, (32,))
    with sim:
        loss = functional.cross_entropy(sim(x), t)
        loss.backward()
        optimizer.step()
    assert "addmm" in str(sim.report())


def test_a_tensor_changed_outside_is_rounded_anew():
    with fpsim.emulate("fp16"):
        x = torch.zeros(2) + 1
    x.fill_(0.1)
    with fpsim.emulate("fp16"):
        assert float((x * 1)[0]) == float(np.float16(0.1))
    sim = fpsim.run(nn.Linear(1, 1), "fp16")
    with torch.no_grad():
        sim.weight.fill_(0.1)
        sim.bias.fill_(0.0)
    assert float(sim(torch.ones(1, 1)).detach()) == float(np.float16(0.1))
