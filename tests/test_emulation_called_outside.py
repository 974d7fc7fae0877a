"""Whatever of a simulation is called outside its context runs emulated or raises."""

import asyncio
import copy
import functools
import gc
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import fpsim
from fpsim.emulation import OutsideContext
from fpsim.emulation.dispatch import hooks

X = torch.linspace(-1, 1, 12).reshape(3, 4)


class Net(nn.Module):
    """Everything through which a model's code is reached."""

    scale = property(lambda self: self.head.weight / 3)
    partial = functools.partialmethod(lambda self, x, factor: self.head(x) / factor, factor=3)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.named = nn.ModuleDict({"one": nn.Linear(4, 4)})
        self.head = nn.Linear(4, 2)
        self.bound = self.encode
        self.function = lambda x: self.head(x)
        self.half_done = functools.partial(torch.div, other=3)

    def forward(self, x):
        return self.head(self.encode(x))

    def encode(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x)) / 3
        return x

    @functools.cached_property
    def table(self):
        return self.head.weight / 3

    def raw(self, x):
        return x @ self.head.weight.T / 3

    @staticmethod
    def third(x):
        return x / 3

    @classmethod
    def of_class(cls, x):
        return cls.third(x)

    def steps(self, x):
        for block in self.blocks:
            given = yield block(x) / 3
            x = x if given is None else given

    async def later(self, x):
        await asyncio.sleep(0)
        return self.head(x) / 3

    async def stream(self, x):
        for block in self.blocks:
            await asyncio.sleep(0)
            yield block(x) / 3

    def __getitem__(self, index):
        return self.head.weight[index] / 3

    def __iter__(self):
        yield self.head.weight / 3


async def _all(stream):
    return [item async for item in stream]


REACHED = {
    "the simulation": lambda net: net(X),
    "forward": lambda net: net.forward(X),
    "a method": lambda net: net.encode(X),
    "a method without modules": lambda net: net.raw(X),
    "a static method": lambda net: net.third(X),
    "a class method": lambda net: net.of_class(X),
    "a method kept in an attribute": lambda net: net.bound(X),
    "a function in an attribute": lambda net: net.function(X),
    "a partial function": lambda net: net.half_done(X),
    "a partial method": lambda net: net.partial(X),
    "getattr": lambda net: getattr(net, "encode")(X),  # noqa: B009
    "a property": lambda net: net.scale,
    "a cached property": lambda net: net.table,
    "an item": lambda net: net[0],
    "iteration": lambda net: next(iter(net)),
    "a generator": lambda net: list(net.steps(X)),
    "a coroutine": lambda net: asyncio.run(net.later(X)),
    "an asynchronous generator": lambda net: asyncio.run(_all(net.stream(X))),
    "functional_call": lambda net: torch.func.functional_call(net, dict(net.named_parameters()), (X,)),
    "a thread": lambda net: in_thread(lambda: net.encode(X)),
}


def in_thread(function):
    results = []

    def keep():
        try:
            results.append(function())
        except OutsideContext as error:
            results.append(error)

    thread = threading.Thread(target=keep)
    thread.start()
    thread.join()
    if isinstance(results[0], OutsideContext):
        raise results[0]
    return results[0]


def flat(result):
    return torch.cat([item.detach().flatten() for item in (result if isinstance(result, list) else [result])])


@pytest.mark.parametrize("way", REACHED)
@pytest.mark.parametrize("inplace", [False, True])
def test_what_is_reached_through_a_simulation_is_emulated(way, inplace):
    found = flat(REACHED[way](fpsim.run(Net(), "fp16", "fp16", inplace=inplace)))
    with fpsim.run(Net(), "fp16", "fp16") as sim:
        expected = flat(REACHED[way](sim.model)) if "thread" not in way else flat(sim.encode(X))
    assert torch.equal(found, expected)
    assert torch.equal(found, found.half().float())
    assert not torch.equal(found, flat(REACHED[way](Net()))), "float32 would show"


CALLED = {
    "the model": lambda sim: sim.model(X),
    "an attribute": lambda sim: sim.head(X),
    "an item of a list": lambda sim: sim.blocks[1](X),
    "a slice of a list": lambda sim: nn.Sequential(*sim.blocks[:1])(X),
    "an item of a dictionary": lambda sim: sim.named["one"](X),
    "children": lambda sim: list(sim.children())[-1](X),
    "modules": lambda sim: list(sim.modules())[-1](X),
    "get_submodule": lambda sim: sim.get_submodule("blocks.0")(X),
    "a method of the model": lambda sim: sim.model.encode(X),
    "functional_call": lambda sim: torch.func.functional_call(sim.model, dict(sim.named_parameters()), (X,)),
    "vmap": lambda sim: torch.func.vmap(sim.head)(X),
    "a checkpoint": lambda sim: checkpoint(sim.head, X, use_reentrant=False),
    "jit.trace": lambda sim: torch.jit.trace(sim.head, X),
    "compile": lambda sim: torch.compile(sim.head, backend="eager")(X),
    "compile of the model": lambda sim: torch.compile(sim.model, backend="eager")(X),
    "no gradients": lambda sim: torch.no_grad()(sim.head)(X),
    "inference mode": lambda sim: torch.inference_mode()(sim.head)(X),
    "another module": lambda sim: nn.Sequential(nn.ReLU(), sim.head)(X),
    "a parametrized module": lambda sim: parametrize.register_parametrization(sim.head, "weight", nn.Tanh())(X),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fmt", ["fp16", "native", {"*": "fp16"}])
@pytest.mark.parametrize("way", CALLED)
def test_a_module_called_by_itself_raises(way, fmt):
    sim = fpsim.run(Net(), fmt)
    with pytest.raises(OutsideContext, match="outside its context"):
        CALLED[way](sim)
    with sim:
        CALLED[way](sim)


def test_in_another_thread_or_another_context_it_raises_too():
    sim = fpsim.run(Net(), "fp16")
    with sim, pytest.raises(OutsideContext):
        in_thread(lambda: sim.head(X))
    with fpsim.emulate("bf16"), pytest.raises(OutsideContext):
        sim.head(X)
    with fpsim.emulate("fp16"):
        sim.head(X)


def test_the_message_names_the_module():
    sim = fpsim.run(Net(), "fp16")
    with pytest.raises(OutsideContext, match=r"blocks\.1 \(Linear\).*`with sim:`.*sim\(\.\.\.\)"):
        sim.blocks[1](X)


def test_a_generator_is_inside_only_while_it_runs():
    sim = fpsim.run(Net(), "fp16")
    steps = sim.steps(X)
    first = next(steps)
    assert (torch.tensor([1.0]) / 3).item() == torch.tensor(1 / 3).item(), "outside between its steps"
    second = steps.send(X * 2)
    steps.close()
    with sim:
        expected = sim.blocks[0](X) / 3, sim.blocks[1](X * 2) / 3
    assert torch.equal(first, expected[0]) and torch.equal(second, expected[1])
    with pytest.raises(KeyError, match="thrown"):
        running = sim.steps(X)
        next(running)
        running.throw(KeyError("thrown"))


def test_a_forward_pass_that_yields_is_inside_while_it_runs():
    class Yields(nn.Linear):
        def forward(self, x):
            yield super().forward(x) / 3

    result = next(fpsim.run(Yields(4, 4), "fp16")(X))
    assert torch.equal(result, result.half().float())


def test_what_needs_no_context_has_none():
    """State, modes and attributes are the model's, outside too."""
    sim = fpsim.run(Net(), "fp16")
    assert not sim.eval().training and sim.train().training and sim.to(torch.float32) is sim
    assert [name for name, _ in sim.named_parameters()] == list(sim.state_dict()) and len(list(sim.parameters())) == 8
    assert sim.load_state_dict(sim.state_dict()).missing_keys == [] and sim.zero_grad() is None
    assert sim.requires_grad_(False).head.weight.requires_grad is False
    assert sim.encode.__name__ == "encode"
    with pytest.raises(AttributeError, match="nothing"):
        sim.nothing  # noqa: B018


def test_attributes_are_read_inside_another_simulation():
    sim = fpsim.run(Net(), "fp16")
    with fpsim.emulate("bf16"):
        assert torch.equal(sim.scale, fpsim.round(sim.scale.detach(), "bf16"))
        with pytest.raises(RuntimeError, match="already emulating"):
            sim.encode(X)


def test_hooks_of_the_simulation_run_emulated():
    sim = fpsim.run(nn.Linear(4, 4), "fp16")
    sim.register_forward_hook(lambda module, inputs, output: output / 3)
    result = sim(X)
    assert torch.equal(result, result.half().float())


def test_copies_and_files_of_modules_are_free_others_are_not(tmp_path):
    sim = fpsim.run(Net(), "fp16")
    copy.deepcopy(sim.head)(X)  # a module of its own
    pickle.loads(pickle.dumps(sim.head))(X)
    torch.save(sim.head, tmp_path / "head.pt")
    torch.load(tmp_path / "head.pt", weights_only=False)(X)
    again = copy.deepcopy(fpsim.run(nn.Sequential(nn.Linear(4, 4)), "fp16")), pickle.loads(
        pickle.dumps(fpsim.run(nn.Sequential(nn.Linear(4, 4)), "fp16"))
    )
    for other in again:
        assert torch.equal(other(X), other(X).half().float())
        with pytest.raises(OutsideContext):
            other[0](X)
    model = Net()
    fpsim.run(model, "fp16")(X)
    model(X)  # the original is not the simulation's
    kept = fpsim.run(model, "fp16", inplace=True)
    with pytest.raises(OutsideContext):
        model(X)
    del kept
    gc.collect()
    model(X)


def test_modules_put_in_later_are_known_when_the_context_was_entered():
    sim = fpsim.run(nn.Sequential(nn.Linear(4, 4)), "fp16")
    sim.model.append(nn.Linear(4, 4))
    sim(X)
    with pytest.raises(OutsideContext):
        sim[1](X)


def test_fp32_in_the_librarys_own_order_is_torch_itself_outside_too():
    sim = fpsim.run(Net(), "fp32", "native")
    assert torch.equal(sim.head(X), Net().head(X))


@pytest.mark.filterwarnings("ignore")
def test_other_models_are_compiled_as_ever():
    torch._dynamo.reset()  # of what refused to compile before
    sim, other = fpsim.run(Net(), "fp16"), nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert torch.equal(torch.compile(other, backend="eager", fullgraph=True)(X), other(X))
    assert sim.model is not None
    del sim
    gc.collect()
    assert hooks._module_hook is None or hooks._simulated


class Nested(nn.Module):
    def __init__(self, depth, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.depth, self.reentrant = nn.Linear(4, 4), depth, reentrant

    def run(self, x, depth):
        x = torch.tanh(self.layer(x))
        return checkpoint(self.run, x, depth - 1, use_reentrant=self.reentrant) if depth else x

    def forward(self, x):
        return self.run(x, self.depth)


@pytest.mark.parametrize("fmt", ["fp16", "native"])
def test_autograds_own_threads_are_inside(fmt):
    """Below 60 nested checkpoints torch differentiates in threads of its own; the gradients are those without checkpoints."""
    gradients = []
    for reentrant in (True, False):
        net = Nested(64, reentrant)
        sim = fpsim.run(net.half() if fmt == "native" else net, fmt)
        x = X.to(sim.layer.weight.dtype).requires_grad_()
        with sim:
            sim(x).sum().backward()
        gradients.append(sim.layer.weight.grad)
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0
    sim = fpsim.run(Nested(64, True), {"*": "fp16", "gradient": "bf16"})
    with sim, pytest.raises(RuntimeError, match="nested too deep for settings by module"):
        sim(X.clone().requires_grad_()).sum().backward()
