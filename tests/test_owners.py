"""Where no module is running, an event names the parameter whose gradient an operation reads or writes, in lists too."""

import pytest
import torch
from torch import nn

import fpsim


def by_norm(parameters, foreach):
    torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=foreach)


def by_norm_of_others(parameters, foreach):
    nn.utils.get_total_norm([item.grad for item in parameters], norm_type=1.0, foreach=foreach)


def by_scale(parameters, foreach):
    gradients = [item.grad for item in parameters]
    if foreach:
        torch._foreach_mul_(gradients, 4.0)
    else:
        [gradient.mul_(4.0) for gradient in gradients]


def by_scaled_copy(parameters, foreach):
    gradients = [item.grad for item in parameters]
    torch._foreach_mul(gradients, 4.0) if foreach else [gradient * 4.0 for gradient in gradients]


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("change", [by_norm, by_norm_of_others, by_scale, by_scaled_copy])
def test_what_overflows_of_a_gradient_is_of_its_parameter(change, foreach):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    sim = fpsim.run(model, "fp16", observe="events")
    with sim:
        for parameter in sim.parameters():
            parameter.grad = torch.ones_like(parameter)
        sim[2].weight.grad.mul_(60000.0)
        change(list(sim.parameters()), foreach)
    first = sim.report().first
    assert (first.kind, first.module) == ("overflow", "2") and "of the gradient of 2.weight; " in first.text
    assert first.place.file == change.__code__.co_filename


def test_gradients_of_several_modules_at_once_are_of_none():
    sim = fpsim.run(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)), "fp16", observe="events")
    with sim:
        left, right = (torch.full_like(item, 40000.0) for item in sim.parameters())
        sim[0].weight.grad, sim[1].weight.grad = left, right
        left + right
    (event,) = sim.report().events
    assert (event.kind, event.module) == ("overflow", "") and "gradient" not in event.text


def test_a_parameter_that_is_gone_is_named_by_nothing():
    with fpsim.emulate("fp16", observe=(events := fpsim.emulation.observers.events.Events())):
        layer = nn.Linear(2, 2, bias=False)
        layer(torch.ones(1, 2)).sum().backward()
        gradient = layer.weight.grad
        del layer
        gradient * 1e6
    (event,) = events.events.values()
    assert (event.kind, event.module) == ("overflow", "")
