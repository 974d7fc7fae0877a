"""A model, its inputs, and one step of training: what `fpsim record --model` names."""

import torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(48, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).bfloat16()
inputs = torch.randn(8, 48).bfloat16()


def step() -> None:
    """Forward and backward pass, and the optimizer."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(inputs).sum().backward()
    optimizer.step()
