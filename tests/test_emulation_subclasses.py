"""Tensors of kinds that say themselves what operations do are refused, as operands and as what a model holds."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._pytree import tree_map

import fpsim


class Wrapper(torch.Tensor):
    """Has no memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def bare(value):
            return value.inner if isinstance(value, Wrapper) else value

        result = func(*tree_map(bare, args), **tree_map(bare, kwargs or {}))
        return Wrapper(result) if isinstance(result, torch.Tensor) else result


class Model(nn.Module):
    def __init__(self, held, as_parameter):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        if as_parameter:
            self.held = nn.Parameter(held)
        else:
            self.register_buffer("held", held)


@pytest.fixture
def distributed():
    from torch.distributed.tensor import Replicate, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield distribute_tensor(torch.ones(2, 2) / 3, init_device_mesh("cpu", (1,)), [Replicate()])
    dist.destroy_process_group()


CALLS = (lambda x: x + 1, lambda x: x @ torch.ones(2, 2), lambda x: x.mul_(2), lambda x: x.detach(), lambda x: x.view(4))


@pytest.mark.parametrize("fmt", ["fp16", "native", {"*": "fp16"}], ids=str)
@pytest.mark.parametrize("observe", [None, "events"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_operands_are_refused_under_every_format(fmt, observe, dtype):
    with fpsim.emulate(fmt, observe=observe):
        for call in CALLS:
            with pytest.raises(fpsim.UnsupportedOp, match=r"aten\..* subclasses \(Wrapper\), which have no rules"):
                call(Wrapper(torch.ones(2, 2, dtype=dtype)))


@pytest.mark.parametrize("fmt", ["fp16", "native"])
def test_of_a_distributed_tensor_the_local_part_is_to_be_used(fmt, distributed):
    with fpsim.emulate(fmt):
        for call in CALLS:
            said = r"aten\.[a-z]+.*operands are tensor subclasses \(DTensor\).*: compute with x\.to_local\(\), "
            with pytest.raises(fpsim.UnsupportedOp, match=said):
                call(distributed)
        local = distributed.to_local() + 1
    assert torch.equal(local, (distributed.to_local().half() + 1).float() if fmt == "fp16" else distributed.to_local() + 1)
    for as_parameter in (False, True):
        with pytest.raises(fpsim.UnsupportedOp, match=r"^held is a DTensor.*: let the model hold x\.to_local\(\)"):
            fpsim.run(Model(distributed, as_parameter), fmt)


HELD = {
    "wrapper": lambda: Wrapper(torch.ones(2, 2)),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(1)], layout=torch.jagged),
    "strided": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(1)]),
    "masked": lambda: torch.masked.masked_tensor(torch.ones(2), torch.tensor([True, False])),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("as_parameter", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", HELD)
def test_what_a_model_holds_is_refused_with_its_name(kind, inplace, as_parameter):
    with pytest.raises(fpsim.UnsupportedOp, match=r"^held is a .*Tensor|^held is a Wrapper"):
        fpsim.run(Model(HELD[kind](), as_parameter), "fp16", inplace=inplace)
