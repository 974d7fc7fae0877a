"""Memory that others can write is never trusted: what NumPy, a pointer or another process put there is rounded."""

import copy
import ctypes
import io
import multiprocessing

import numpy as np
import pytest
import torch

import fpsim
from fpsim.emulation.machine import marks

THIRD = 1 / 3
THIRDS = np.full(4, THIRD, np.float32)
ROUNDED = 0.333251953125  # to fp16, by hand: 1365/4096
FORMATS = ["fp16", {"*": "fp16", "weight": "fp32"}]


def by_pointer(pointer):
    return (ctypes.c_float * 4).from_address(pointer)


class Alias:
    """Ways to reach a tensor's memory past torch: each gives something that takes items."""

    numpy = staticmethod(lambda t: t.detach().numpy())
    forced = staticmethod(lambda t: t.numpy(force=True))
    asarray = staticmethod(lambda t: np.asarray(t.detach()))
    view = staticmethod(lambda t: t.detach().view(2, 2)[0].numpy())
    subclass = staticmethod(lambda t: t.detach().as_subclass(type("Own", (torch.Tensor,), {})).numpy())
    ctypes = staticmethod(lambda t: by_pointer(t.data_ptr()))
    storage_pointer = staticmethod(lambda t: by_pointer(t.untyped_storage().data_ptr()))
    typed_storage_pointer = staticmethod(lambda t: by_pointer(t.storage().data_ptr()))
    dlpack = staticmethod(lambda t: np.from_dlpack(t.detach()))
    buffer = staticmethod(lambda t: memoryview(t.detach().numpy()))
    from_dlpack = staticmethod(lambda t: torch.from_dlpack(t.detach()).numpy())
    capsule = staticmethod(lambda t: torch.from_dlpack(torch.utils.dlpack.to_dlpack(t.detach())).numpy())
    slice_of_storage = staticmethod(lambda t: torch.empty(0).set_(t.untyped_storage()[0:16]).numpy())


ALIASES = {name: function.__func__ for name, function in vars(Alias).items() if isinstance(function, staticmethod)}
#: What writes by itself, past the dispatcher or as bytes.
WRITERS = {
    "apply_": lambda t: t.detach().apply_(lambda _: THIRD),
    "map_": lambda t: t.detach().map_(torch.zeros(4), lambda x, _: THIRD),
    "map2_": lambda t: t.detach().map2_(torch.zeros(4), torch.zeros(4), lambda x, y, z: THIRD),
    "bytes": lambda t: [t.untyped_storage().__setitem__(i, b) for i, b in enumerate(THIRDS.tobytes())],
    "storage": lambda t: [t.storage().__setitem__(i, THIRD) for i in range(4)],
    "storage fill": lambda t: t.storage().fill_(THIRD),
    "storage copy": lambda t: t.untyped_storage().copy_(torch.from_numpy(THIRDS).untyped_storage()),
    "byteswap": lambda t: t.untyped_storage().byteswap(torch.float32),
    "bytes of a view": lambda t: t.detach().view(torch.uint8).copy_(torch.from_numpy(THIRDS.view(np.uint8))),
    "integers": lambda t: t.detach().view(torch.int32).fill_(int(np.float32(THIRD).view(np.int32))),
}  # fmt: skip


def made(kind):
    """A tensor inside the context that holds values of the format, and is marked to."""
    if kind == "result":
        return torch.ones(4) * 1
    if kind == "filled":
        return torch.empty(4).fill_(1)
    tensor = torch.nn.Parameter(torch.ones(4)) if kind == "parameter" else torch.ones(4)
    tensor.data.mul_(1)
    return tensor


def read(tensor):
    """What an operation sees there: `neg` makes no rounding of its own, and a product with 1 less itself is exact."""
    numbers = (-tensor.detach()).neg().tolist()
    assert (tensor.detach() - torch.tensor(numbers)).tolist() == [0, 0, 0, 0]
    assert (tensor.detach() @ torch.ones(4) - torch.tensor(numbers) @ torch.ones(4)).item() == 0
    return numbers


def is_rounded(tensor):
    return read(tensor) == np.array(tensor.tolist(), np.float32).astype(np.float16).tolist()


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("fmt", FORMATS, ids=["one format", "several"])
@pytest.mark.parametrize("kind", ["result", "filled", "parameter", "outside"])
@pytest.mark.parametrize("name", ALIASES)
def test_what_is_written_through_an_alias_is_rounded(name, kind, fmt):
    with fpsim.emulate(fmt=fmt):
        tensor = made(kind)
        alias = ALIASES[name](tensor)
        alias[0] = THIRD
        assert tensor.tolist()[0] == np.float32(THIRD)
        assert read(tensor)[0] == ROUNDED
        tensor.data.mul_(1)  # writes rounded values, which change nothing about who else can write there
        alias[0] = THIRD
        assert read(tensor)[0] == ROUNDED
        tensor.data.fill_(2)
        tensor.data.zero_()
        torch.add(tensor.detach(), 1, out=tensor.data)
        alias[0] = THIRD
        assert is_rounded(tensor)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("fmt", FORMATS, ids=["one format", "several"])
@pytest.mark.parametrize("kind", ["result", "filled", "parameter", "outside"])
@pytest.mark.parametrize("name", WRITERS)
def test_what_a_call_writes_past_the_dispatcher_is_rounded(name, kind, fmt):
    with fpsim.emulate(fmt=fmt):
        tensor = made(kind)
        WRITERS[name](tensor)
        assert is_rounded(tensor)


#: Tensors whose memory somebody else has already: (tensor, something that takes items).
def from_numpy():
    array = np.ones(4, np.float32)
    return torch.from_numpy(array), array


def from_buffer():
    buffer = bytearray(np.ones(4, np.float32))
    return torch.frombuffer(buffer, dtype=torch.float32), np.frombuffer(buffer, np.float32)


def from_dlpack():
    array = np.ones(4, np.float32)
    return torch.from_dlpack(array), array


def as_tensor():
    array = np.ones(4, np.float32)
    return torch.as_tensor(array), array


def in_shared_memory():
    tensor = torch.ones(4).share_memory_()
    return tensor, by_pointer(tensor.data_ptr())


def seen_by_numpy():
    tensor = torch.ones(4)
    return tensor, tensor.numpy()


def set_to_an_array():
    array = np.ones(4, np.float32)
    return torch.empty(0).set_(torch.from_numpy(array).untyped_storage()), array


def from_file(folder):
    array = np.memmap(folder / "numbers", np.float32, "w+", shape=4)
    array[:] = 1
    return torch.from_file(str(folder / "numbers"), shared=True, size=4), array


BEFORE = [from_numpy, from_buffer, from_dlpack, as_tensor, in_shared_memory, seen_by_numpy, set_to_an_array, from_file]


@pytest.mark.parametrize("fmt", FORMATS, ids=["one format", "several"])
@pytest.mark.parametrize("source", BEFORE)
def test_an_alias_from_before_the_context_is_known(source, fmt, tmp_path):
    tensor, alias = source(tmp_path) if source is from_file else source()
    with fpsim.emulate(fmt=fmt):
        for write in (lambda: tensor.mul_(1), lambda: tensor.fill_(2), tensor.zero_, lambda: torch.add(tensor, 1, out=tensor)):
            write()
            alias[0] = THIRD
            assert read(tensor)[0] == ROUNDED


@pytest.mark.parametrize("inside", [True, False])
def test_an_alias_of_a_parameter_is_known_wherever_it_was_made(inside):
    sim = fpsim.run(torch.nn.Linear(4, 1, bias=False), "fp16")
    x = torch.ones(1, 4)
    with sim:
        sim(x)
        array = sim.weight.detach().numpy() if inside else None
    array = sim.weight.detach().numpy() if array is None else array
    for _ in range(2):
        with sim:
            array[:] = [[THIRD, 0, 0, -ROUNDED]]
            assert sim(x).item() == 0


def test_an_alias_of_a_model_that_is_used_itself_is_known():
    model = torch.nn.Linear(4, 1, bias=False)
    array = model.weight.detach().numpy()
    with fpsim.run(model, "fp16", inplace=True) as sim:
        array[:] = [[THIRD, 0, 0, -ROUNDED]]
        assert sim(torch.ones(1, 4)).item() == 0


def _write(tensor):
    tensor[0] = THIRD


@pytest.mark.parametrize("how", ["share_memory_", "sent"])
def test_what_another_process_writes_is_rounded(how):
    context = multiprocessing.get_context("fork") if how == "share_memory_" else torch.multiprocessing.get_context("spawn")
    with fpsim.emulate(fmt="fp16"):
        tensor = torch.ones(4) * 1
        if how == "share_memory_":
            tensor.share_memory_()
        process = context.Process(target=_write, args=(tensor,))
        process.start()
        process.join()
        assert tensor.tolist()[0] == np.float32(THIRD)
        assert read(tensor)[0] == ROUNDED


def test_what_nobody_else_has_stays_marked():
    """Reading in place is what keeps emulation fast: nothing that fpsim or torch does by itself gives memory away."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.LSTM(8, 3))
    sim = fpsim.run(model, "fp16")
    own = torch.nn.Parameter(torch.ones(3))
    for options in ({}, {"fused": True}, {"foreach": True}):
        optimizer = torch.optim.AdamW([*sim.parameters(), own], lr=0.01, **options)
        for _ in range(2):
            with sim:
                optimizer.zero_grad()
                (sim(torch.ones(5, 4))[0] * own).sum().backward()
                optimizer.step()
                tag = sim._emulation.machine.arithmetic.tag
                state = [value for values in optimizer.state.values() for name, value in values.items() if name != "step"]
                for tensor in (*sim.parameters(), own, own.grad, *state):
                    assert marks.tag_on(tensor) is tag
                torch.save(sim.state_dict(), io.BytesIO())
                assert repr(own) and copy.deepcopy(sim) and marks.tag_on(sim[0].weight) is tag
