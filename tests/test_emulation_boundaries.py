"""Numbers and parameters that change hands between emulation and the code around it."""

import numpy as np
import pytest
import torch
from torch import nn

import fpsim
from fpsim.emulation import OutsideContext
from tests import quick_python


def is_fp16(tensor):
    return bool((tensor.detach() == fpsim.round(tensor.detach().clone(), "fp16")).all())


def backward(sim):
    with sim:
        sim(torch.linspace(-1, 1, 12).reshape(3, 4)).square().sum().backward()


def test_load_state_dict_inside_the_context_leaves_it_whole():
    sim = fpsim.run(nn.Linear(4, 4), "fp16")
    before = torch._C._get_mkldnn_enabled()
    with sim:
        sim.load_state_dict(nn.Linear(4, 4).state_dict())
        assert all(is_fp16(parameter) for parameter in sim.parameters())
    assert (torch.tensor(1.0) + 1e-5).item() != 1.0
    assert torch._C._get_mkldnn_enabled() == before


def test_tensors_changed_outside_are_rounded_again():
    with fpsim.emulate("fp16"):
        x = torch.ones(4) + 0
    x.add_(1e-5)
    assert not is_fp16(x)
    with fpsim.emulate("fp16"):
        assert is_fp16(x.clone())
        assert is_fp16(torch.cat([x, x]))


def test_gradients_clipped_outside_are_rounded_before_the_step():
    sim = fpsim.run(nn.Linear(4, 4), "fp16")
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.1, momentum=0.9)
    backward(sim)
    nn.utils.clip_grad_norm_(sim.parameters(), 0.3)
    assert not all(is_fp16(parameter.grad) for parameter in sim.parameters())
    with sim:
        optimizer.step()
    assert all(is_fp16(state["momentum_buffer"]) for state in optimizer.state.values())
    assert all(is_fp16(parameter) for parameter in sim.parameters())


LEAST = torch.finfo(torch.float32).min
MASK = torch.tensor([True, False, True])


def by_index(x, value):
    x[0] = value
    x[2] = value
    return x


def by_mask(x, value):
    x[MASK] = value
    return x


def by_slice(x, value):
    x[::2] = value
    return x


FILLERS = {
    "index": by_index,
    "mask": by_mask,
    "slice": by_slice,
    "masked_fill": lambda x, value: x.masked_fill(MASK, value),
    "masked_fill tensor": lambda x, value: x.masked_fill_(MASK, torch.tensor(value)),
    "where number": lambda x, value: torch.where(MASK, value, x),
    "where tensor": lambda x, value: torch.where(MASK, torch.tensor(value), x),
    "fill_ tensor": lambda x, value: torch.where(MASK, x.clone().fill_(torch.tensor(value)), x),
}


@pytest.mark.parametrize("fill", FILLERS.values(), ids=FILLERS)
@pytest.mark.parametrize(("fmt", "value", "expected"), [("fp16", LEAST, -65504.0), ("e4m3fn", float("-inf"), -448.0)])
def test_constants_saturate_however_they_are_written(fill, fmt, value, expected):
    with fpsim.emulate(fmt):
        assert fill(torch.zeros(3), value).tolist() == [expected, 0.0, expected]


def test_a_masked_softmax_stays_finite():
    with fpsim.emulate("fp16"):
        assert torch.softmax(by_slice(torch.zeros(3), LEAST), 0).tolist() == [0.0, 1.0, 0.0]


def test_quotients_of_integers_are_rounded():
    numbers = np.arange(5000)
    with fpsim.emulate("fp16"):
        assert torch.equal(torch.arange(5000) / 3, torch.from_numpy((numbers / 3).astype(np.float16).astype(np.float32)))
        assert (torch.tensor(3) / torch.tensor(7)).item() == float(np.float16(3 / 7))


def assign(sim):
    sim.model.load_state_dict(nn.Linear(4, 4).state_dict(), assign=True)


def replace(sim):
    sim.model.weight = nn.Parameter(torch.randn(4, 4))


def clone_data(sim):
    for parameter in sim.parameters():
        parameter.data = parameter.data.clone()


@pytest.mark.parametrize("change", [assign, replace, clone_data])
def test_a_step_outside_raises_after_parameters_were_replaced(change):
    sim = fpsim.run(nn.Linear(4, 4), "fp16")
    change(sim)
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.1)
    backward(sim)
    with pytest.raises(OutsideContext, match=r"SGD\.step"):
        optimizer.step()


def test_adam_with_amsgrad_foreach():
    sim = fpsim.run(nn.Linear(4, 4), "fp16")
    optimizer = torch.optim.Adam(sim.parameters(), foreach=True, amsgrad=True)
    backward(sim)
    with sim:
        optimizer.step()
    assert all(is_fp16(parameter) for parameter in sim.parameters())


def test_a_simulation_made_double_is_refused():
    sim = fpsim.run(nn.Linear(2, 2), "fp16")
    sim.double()
    with pytest.raises(ValueError, match="float64"):
        sim(torch.ones(1, 2, dtype=torch.float64))


@pytest.mark.parametrize("seed", [1.5, "a", True])
def test_seeds_are_integers(seed):
    with pytest.raises(TypeError, match="seed must be an int"):
        fpsim.round(1.0, "fp16", "stochastic", seed=seed)
    with pytest.raises(TypeError, match="seed must be an int"):
        fpsim.run(nn.Linear(2, 2), "fp16", rounding="stochastic", seed=seed)


def test_one_significand_bit_is_never_rounded_to_odd():
    with pytest.raises(ValueError, match="e3m0"):
        fpsim.round(3.0, "e3m0", "odd")


def test_a_sequential_simulation_is_indexed_as_its_model():
    sim = fpsim.run(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "fp16")
    assert sim[0] is sim.model[0]
    assert len(sim) == 2
    assert list(sim) == list(sim.model)


SCRIPT = """
import multiprocessing, os, subprocess, sys, torch

def work():
    pass

if __name__ == "__main__":
    how = sys.argv[1]
    if how in ("fork", "spawn"):
        multiprocessing.get_context(how).Process(target=work).start()
    elif how == "python":
        subprocess.run([sys.executable, "-c", ""])
    elif how == "os.fork":
        os.fork() or os._exit(0)
    else:
        data = torch.utils.data.TensorDataset(torch.arange(6.0))
        print(len(list(torch.utils.data.DataLoader(data, batch_size=2, num_workers=1))), "batches")
"""


@pytest.mark.parametrize("how", ["fork", "spawn", "python", "os.fork", "loader"])
def test_processes_under_fpsim_run(how, tmp_path):
    import subprocess

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [quick_python.executable(), "-m", "fpsim.cli", "run", str(script), "--fmt", "fp16", how]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if how == "loader":
        assert (result.returncode, result.stdout) == (0, "3 batches\n"), result.stderr
    else:
        assert result.returncode == 1
        assert "only the workers of a DataLoader" in result.stderr
