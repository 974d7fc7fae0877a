"""Updates, lost updates: torch's optimizers in float64 say what a step means, NumPy what becomes of it in bfloat16."""

import numpy as np
import pytest
import torch
from ml_dtypes import bfloat16
from torch import nn

import fpsim

RATE, DECAY = 1e-2, 1e-2
DECOUPLED = {"decoupled_weight_decay": True, "weight_decay": DECAY}
OPTIMIZERS = {
    "SGD": ("SGD", {}),
    "SGD with all": ("SGD", {"momentum": 0.9, "weight_decay": DECAY, "nesterov": True}),
    "SGD upwards": ("SGD", {"maximize": True, "momentum": 0.5}),
    "Adam": ("Adam", {}),
    "Adam with decay": ("Adam", {"weight_decay": DECAY, "amsgrad": True}),
    "AdamW": ("AdamW", {"weight_decay": DECAY}),
    "AdamW without decay": ("AdamW", {"weight_decay": 0.0}),
    "NAdam": ("NAdam", {}),
    "NAdam with decay": ("NAdam", DECOUPLED),
    "RAdam": ("RAdam", {}),
    "RAdam with decay": ("RAdam", DECOUPLED),
    "Adagrad": ("Adagrad", {}),
    "Adadelta": ("Adadelta", {}),
    "RMSprop": ("RMSprop", {"momentum": 0.9, "centered": True}),
    "Rprop": ("Rprop", {}),
    "Adamax": ("Adamax", {}),
    "ASGD": ("ASGD", {"lambd": 0.0}),
    "Adafactor": ("Adafactor", {"weight_decay": 0.0}),
    "Adafactor with decay": ("Adafactor", {"weight_decay": DECAY}),
    "Muon": ("Muon", {"weight_decay": DECAY}),
}
IMPLEMENTATIONS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
#: Whose decay multiplies the parameter.
DECAYS = ("AdamW", "NAdam with decay", "RAdam with decay", "Adafactor with decay", "Muon")


def stored(values):
    """float64 numbers as bfloat16 holds them: through float32, where none of these lies that close to a midpoint."""
    return np.asarray(values, np.float64).astype(np.float32).astype(bfloat16).astype(np.float64)


def state():
    """Parameters from 0 over 2^-10 to 2^7, and gradients from 0 to 10, as bfloat16 values in float64."""
    generator = np.random.default_rng(0)
    parameter = generator.standard_normal((16, 8)) * np.logspace(-3, 2, 8)
    gradient = generator.standard_normal((16, 8)) * np.logspace(-3, 1, 16)[:, None]
    parameter[0], gradient[:, 0] = 0, 0
    return stored(parameter), stored(gradient)


def optimizer_of(name, parameter, implementation=None):
    kind, arguments = OPTIMIZERS[name]
    how = IMPLEMENTATIONS[implementation] if implementation else {}
    return getattr(torch.optim, kind)([parameter], lr=RATE, **arguments, **how)


def cases():
    for name, (kind, _) in OPTIMIZERS.items():
        for implementation in IMPLEMENTATIONS:
            if kind == "Muon" and implementation != "for-loop":
                continue
            if implementation == "fused" and kind not in ("SGD", "Adam", "AdamW", "Adagrad"):
                continue
            yield name, None if kind == "Muon" else implementation


def meant(name):
    """What a first step makes of the parameter in float64, which is what it means."""
    start, gradient = state()
    parameter = nn.Parameter(torch.from_numpy(start.copy()))
    parameter.grad = torch.from_numpy(gradient)
    optimizer_of(name, parameter).step()
    return parameter.detach().numpy()


def counted(fmt, function, start, **machine):
    """(updates, lost, what the parameter holds then) of a function of a parameter."""
    dtype = torch.bfloat16 if fmt == "native" else torch.float32
    parameter = nn.Parameter(torch.from_numpy(start).to(dtype))
    with fpsim.emulate(fmt, **machine) as emulation:
        function(parameter)
    total = emulation.report().total
    return total.updates, total.lost, parameter.detach().double().numpy()


@pytest.mark.parametrize("fmt", ["bf16", "native", {"*": "bf16", "gradient": "e5m2"}])
@pytest.mark.parametrize(("name", "implementation"), cases())
def test_a_step_counts_what_it_means(name, implementation, fmt):
    start, gradient = state()

    def step(parameter):
        parameter.grad = torch.from_numpy(gradient).to(parameter.dtype)
        optimizer_of(name, parameter, implementation).step()

    updates, lost, after = counted(fmt, step, start)
    exact = meant(name)
    left = (exact != start) & (after == start)
    if name in DECAYS:
        decayed = start * (1 - RATE * DECAY)
        if implementation == "fused":  # the decay left no trace, or the rest did not
            without = stored(start + (exact - decayed))
            left |= (start != 0) & (after == without) | (exact != decayed) & (after == stored(decayed))
        else:
            left |= (start != 0) & (stored(decayed) == start)
    assert updates == (exact != start).sum()
    assert lost == left.sum() > 0


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["AdamW", "NAdam with decay", "RAdam with decay", "Adafactor with decay"])
def test_decay_alone_that_is_lost_is_counted(name, implementation, granularity):
    """Ten steps with gradients of zero: decays of 1e-4, which bfloat16 cannot hold beside 1."""
    if implementation == "fused" and name != "AdamW":
        return

    def steps(parameter):
        parameter.grad = torch.zeros_like(parameter)
        optimizer = optimizer_of(name, parameter, implementation)
        for _ in range(10):
            optimizer.step()

    start, _ = state()
    updates, lost, after = counted("bf16", steps, start, granularity=granularity)
    assert (after == start).all()
    assert updates == lost == 10 * (start != 0).sum()


def test_decay_that_is_lost_beside_moving_gradients_is_counted():
    """AdamW's weights equal those without decay: all of it is lost, and half of what a fused step keeps is told too."""
    start = np.random.default_rng(0).standard_normal((32, 64)) * 0.1
    found = {}
    for implementation in IMPLEMENTATIONS:
        for decay in (DECAY, 0.0):

            def steps(parameter, implementation=implementation, decay=decay):
                optimizer = torch.optim.AdamW([parameter], lr=RATE, weight_decay=decay, **IMPLEMENTATIONS[implementation])
                generator = torch.Generator().manual_seed(1)
                for _ in range(10):
                    parameter.grad = torch.randn(parameter.shape, generator=generator)
                    optimizer.step()

            found[implementation, decay] = counted("bf16", steps, stored(start))
    for implementation in ("for-loop", "foreach"):
        updates, lost, weights = found[implementation, DECAY]
        assert (weights == found[implementation, 0.0][2]).all()
        assert updates == lost == 10 * start.size
        assert found[implementation, 0.0][1] < start.size
    updates, lost, weights = found["fused", DECAY]
    assert (weights != found["fused", 0.0][2]).any()
    assert updates == 10 * start.size and 0.9 * updates < lost < updates


BY_HAND = {
    "add_": lambda p, g: p.add_(g, alpha=-RATE),
    "+=": lambda p, g: p.__iadd__(-RATE * g),
    "-=": lambda p, g: p.__isub__(RATE * g),
    "data.sub_": lambda p, g: p.data.sub_(RATE * g),
    "detach().sub_": lambda p, g: p.detach().sub_(RATE * g),
    "copy_": lambda p, g: p.copy_(p - RATE * g),
    "data.copy_": lambda p, g: p.data.copy_(p.data - RATE * g),
    "out": lambda p, g: torch.sub(p, RATE * g, out=p.data),
    "addcmul_": lambda p, g: p.addcmul_(g, torch.full_like(g, RATE), value=-1),
    "addcdiv_": lambda p, g: p.addcdiv_(g, torch.ones_like(g), value=-RATE),
    "view": lambda p, g: p.view(-1).sub_(RATE * g.view(-1)),
    "rows": lambda p, g: [p[i].sub_(RATE * g[i]) for i in range(len(p))],
    "index_add_": lambda p, g: p.index_add_(0, torch.arange(len(p)), g, alpha=-RATE),
    "index_put_": lambda p, g: p.index_put_((torch.arange(len(p)),), -RATE * g, accumulate=True),
    "_foreach_add_": lambda p, g: torch._foreach_add_([p], [g], alpha=-RATE),
    "_foreach_sub_": lambda p, g: torch._foreach_sub_([p], [RATE * g]),
    "_foreach_addcdiv_": lambda p, g: torch._foreach_addcdiv_([p], [g], [torch.ones_like(g)], [-RATE]),
    "_foreach_addcdiv_, tensor": lambda p, g: torch._foreach_addcdiv_(
        [p], [g], [torch.ones_like(g)], torch.tensor([-RATE], dtype=torch.float64)
    ),
    "_foreach_copy_": lambda p, g: torch._foreach_copy_([p], [p - RATE * g]),
}


@pytest.mark.parametrize("fmt", ["bf16", "native", {"*": "bf16", "gradient": "e5m2"}])
@pytest.mark.parametrize("way", BY_HAND)
def test_updates_by_hand_are_counted(way, fmt):
    start, gradient = state()

    def update(parameter):
        with torch.no_grad():
            BY_HAND[way](parameter, torch.from_numpy(gradient).to(parameter.dtype))

    updates, lost, after = counted(fmt, update, start)
    assert updates == (gradient != 0).sum()
    assert lost == ((gradient != 0) & (after == start)).sum() > 0


FACTOR = 1 - RATE * DECAY
SCALED = {
    "mul_": lambda p: p.mul_(FACTOR),
    "*=": lambda p: p.__imul__(FACTOR),
    "div_": lambda p: p.div_(1 / FACTOR),
    "data.mul_": lambda p: p.data.mul_(FACTOR),
    "mul_ by a tensor": lambda p: p.mul_(torch.tensor([FACTOR] * p.shape[1], dtype=torch.float64)),
    "lerp_": lambda p: p.lerp_(torch.zeros_like(p), RATE * DECAY),
    "copy_": lambda p: p.copy_(p * FACTOR),
    "add_ of itself": lambda p: p.add_(p, alpha=-RATE * DECAY),
    "-= a multiple": lambda p: p.__isub__(RATE * DECAY * p),
    "data.add_ of a multiple": lambda p: p.data.add_(p.data * -(RATE * DECAY)),
    "_foreach_add_ of itself": lambda p: torch._foreach_add_([p], [p], alpha=-RATE * DECAY),
    "_foreach_mul_": lambda p: torch._foreach_mul_([p], FACTOR),
    "_foreach_mul_, list": lambda p: torch._foreach_mul_([p], [FACTOR]),
}


@pytest.mark.parametrize("way", SCALED)
def test_decay_by_hand_is_counted(way):
    start, _ = state()

    def update(parameter):
        with torch.no_grad():
            SCALED[way](parameter)

    assert counted("bf16", update, start)[:2] == ((start != 0).sum(), (start != 0).sum())


class Decayed(torch.optim.Optimizer):
    """Decays in some way, and then steps by as much as an ulp of 1 in bfloat16."""

    def __init__(self, parameters, decay):
        self.decay = decay
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            self.decay(parameter)
            parameter.sub_(torch.full_like(parameter, 2.0**-7))


@pytest.mark.parametrize("way", [way for way in SCALED if way not in ("mul_ by a tensor", "lerp_")])
def test_decay_by_hand_that_is_lost_before_a_step_that_is_not(way):
    sim = fpsim.run(torch.nn.ParameterList([torch.nn.Parameter(torch.ones(8))]), "bf16", observe="events")
    with sim:
        Decayed(sim.parameters(), SCALED[way]).step()
    report = sim.report()
    assert (report.total.updates, report.total.lost) == (8, 8) and sim[0].tolist() == [1 - 2.0**-7] * 8
    assert [(event.kind, event.count) for event in report.events] == [("decay-lost", 8)]


def test_changes_too_small_for_float64_are_counted():
    """1 - 1e-30 is 1 in float64 as well; what is added is not zero."""

    def step(parameter):
        parameter.grad = torch.full_like(parameter, 1e-30)
        for how in IMPLEMENTATIONS.values():
            torch.optim.SGD([parameter], lr=1.0, **how).step()
        with torch.no_grad():
            parameter.sub_(parameter.grad)

    assert counted("bf16", step, np.ones(5))[:2] == (20, 20)


def test_what_stays_as_it_was_meant_to_is_no_update():
    def nothing(parameter):
        parameter.grad = torch.zeros_like(parameter)
        torch.optim.SGD([parameter], lr=1.0).step()
        with torch.no_grad():
            parameter.mul_(1.0).add_(0.0).copy_(parameter.clone())
            parameter.data.clamp_(-1e3, 1e3)
        (parameter * 2 - 1).sum().backward()
        with torch.no_grad():  # of another shape, or never written back
            parameter * torch.ones(3, *parameter.shape), parameter[:1] + parameter, parameter - 1e-3, 2 * parameter

    assert counted("bf16", nothing, state()[0])[:2] == (0, 0)


def test_a_step_that_raises_ends_and_the_next_one_counts():
    class Raises(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            raise KeyError

    def steps(parameter):
        parameter.grad = torch.ones_like(parameter)
        optimizer = Raises([parameter], lr=1e-6)
        for _ in range(3):
            with pytest.raises(KeyError):
                optimizer.step()

    assert counted("bf16", steps, np.ones(4))[:2] == (12, 12)


def test_steps_of_a_closure_count_each_element_once():
    def steps(parameter):
        optimizer = torch.optim.LBFGS([parameter], lr=1e-6, max_iter=5)

        def closure():
            optimizer.zero_grad()
            loss = (parameter * 3).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        optimizer.step(closure)

    updates, lost, after = counted("bf16", steps, np.ones(6))
    assert updates == 12 and lost == 12 and (after == 1).all()


def test_stochastic_rounding_loses_by_its_own_draws():
    """The same draws with and without decay: what a fused step's decay changed, it did not lose."""
    start = np.full((64, 64), 1.0)

    def step(parameter):
        parameter.grad = torch.zeros_like(parameter)
        torch.optim.AdamW([parameter], lr=RATE, weight_decay=1e-1, fused=True).step()

    updates, lost, after = counted("bf16", step, start, rounding="stochastic", seed=0)
    assert updates == start.size and lost == (after == 1).sum() and 0 < lost < updates


@pytest.mark.parametrize("fmt", ["bf16", {"*": "bf16", "gradient": "e5m2"}])
def test_what_a_float64_tensor_makes_of_a_parameter_is_rounded_to_its_format(fmt):
    """float64 means itself, and what is stored of it in a float32 tensor does not."""
    start, gradient = state()

    def update(parameter):
        with torch.no_grad():
            parameter.sub_(torch.from_numpy(gradient) * RATE)

    updates, lost, after = counted(fmt, update, start)
    assert (after == stored(start - gradient * RATE)).all()
    assert updates == (gradient != 0).sum() and lost == ((gradient != 0) & (after == start)).sum()


LAYOUTS = {
    "transposed": lambda x: np.asarray(x.T, order="C").T,
    "of no dimensions": lambda x: x[3, 3],
    "empty": lambda x: x[:0],
    "large": lambda x: np.resize(x, (5_000, 128)),  # split among threads
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_marks_lie_as_the_elements_do(layout, name, implementation):
    """Elementwise, a step means the same wherever an element lies."""
    start, gradient = map(LAYOUTS[layout], state())
    single = torch.from_numpy(np.asarray(start)).to(torch.float32)
    parameter = nn.Parameter(single)
    parameter.grad = torch.from_numpy(np.asarray(gradient)).to(torch.float32)
    assert parameter.is_contiguous() == (layout != "transposed")
    with fpsim.emulate("bf16") as emulation:
        optimizer_of(name, parameter, implementation).step()
    total = emulation.report().total

    wide = nn.Parameter(torch.from_numpy(np.array(start, np.float64)))
    wide.grad = torch.from_numpy(np.array(gradient, np.float64))
    optimizer_of(name, wide).step()
    exact, after = wide.detach().numpy(), parameter.detach().double().numpy()
    left = (exact != start) & (after == start)
    if name == "AdamW":
        decayed = start * (1 - RATE * DECAY)
        if implementation == "fused":
            left = left | (start != 0) & (after == stored(start + (exact - decayed)))
            left = left | (exact != decayed) & (after == stored(decayed))
        else:
            left = left | (start != 0) & (stored(decayed) == start)
    assert (total.updates, total.lost) == (np.sum(exact != start), np.sum(left))


def test_what_is_observed_can_be_resized_all_the_same():
    """The observer makes no array of a script's tensors, which torch would never let grow again."""
    with fpsim.emulate("bf16"), torch.no_grad():
        parameter, step = nn.Parameter(torch.ones(4)), torch.ones(4)
        tensors = parameter.data, step
        parameter.copy_(step)
        assert all(tensor.untyped_storage().resizable() for tensor in tensors)
