"""Optimizers' steps on the sparse gradients of embeddings, against loops of NumPy's float16."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import fpsim
from fpsim.emulation import UnsupportedOp

RATE, DECAY, EPSILON = 0.1, 0.9, 1e-3
LOOKED_UP = ((1, 1, 2), (2, 4), (4, 0, 4))  # rows of each step


def half(values):
    """Rounded once; operations on float32 are exact beneath, or round there first as those with numbers do."""
    return np.float32(values).astype(np.float16).astype(np.float32)


def scaled(x, y, factor):
    return half(x + y * np.float32(factor))


def descend(table, state, rows, gradient, step):
    table[rows] = scaled(table[rows], gradient, -RATE)


def gather_momentum(table, state, rows, gradient, step):
    kept = state.setdefault("momentum", {})
    for row in kept:
        kept[row] = half(kept[row] * np.float32(DECAY))
    for row, own in zip(rows, gradient, strict=True):
        kept[row] = half(kept[row] + own) if row in kept else own
    for row, momentum in kept.items():
        table[row] = scaled(table[row], momentum, -RATE)


def adapt(table, state, rows, gradient, step):
    squares = state.setdefault("squares", np.zeros_like(table))
    squares[rows] = half(squares[rows] + half(gradient * gradient))
    deviation = half(half(np.sqrt(squares[rows].astype(np.float64))) + np.float32(EPSILON))
    table[rows] = scaled(table[rows], half(gradient / deviation), -RATE)


def adapt_moments(table, state, rows, gradient, step):
    first, second = (state.setdefault(name, np.zeros_like(table)) for name in ("first", "second"))
    old, old_square = first[rows], second[rows]
    change = half(half(gradient - old) * np.float32(1 - DECAY))
    change_of_square = half(half(half(gradient * gradient) - old_square) * np.float32(1 - 0.99))
    first[rows], second[rows] = half(old + change), half(old_square + change_of_square)
    root = half(np.sqrt(half(change_of_square + old_square).astype(np.float64)))
    size = RATE * math.sqrt(1 - 0.99**step) / (1 - DECAY**step)
    quotient = half(half(change + old) / half(root + np.float32(EPSILON)))
    table[rows] = half(table[rows] + half(quotient * np.float32(-size)))


OPTIMIZERS = {
    "SGD": (lambda p: torch.optim.SGD(p, RATE), descend),
    "SGD with momentum": (lambda p: torch.optim.SGD(p, RATE, momentum=DECAY), gather_momentum),
    "Adagrad": (lambda p: torch.optim.Adagrad(p, RATE, eps=EPSILON), adapt),
    "SparseAdam": (lambda p: torch.optim.SparseAdam(p, RATE, betas=(DECAY, 0.99), eps=EPSILON), adapt_moments),
}


def slopes(rows):
    """What each row that is looked up is multiplied with."""
    generator = np.random.default_rng(len(rows))
    return half(generator.standard_normal((len(rows), 3)))


@pytest.mark.parametrize("fmt", ["fp16", {"*": "fp32", "weight": "fp16", "gradient": "fp16", "optimizer": "fp16"}])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_on_sparse_gradients_change_the_rows_that_have_one(name, fmt):
    make, update = OPTIMIZERS[name]
    torch.manual_seed(0)
    sim = fpsim.run(nn.Embedding(6, 3, sparse=True), fmt, "fp16")
    (parameter,) = sim.parameters()
    table, state, optimizer = parameter.detach().numpy().copy(), {}, make([parameter])
    meant = 0
    for step, rows in enumerate(LOOKED_UP, 1):
        with sim:
            optimizer.zero_grad(set_to_none=step < 3)
            (sim(torch.tensor(rows)) * torch.from_numpy(slopes(rows))).sum().backward()
            optimizer.step()
        gradient = {}
        for row, slope in zip(rows, slopes(rows), strict=True):
            gradient[row] = half(gradient.get(row, np.float32(0)) + slope)
        touched = sorted(gradient)
        update(table, state, touched, np.array([gradient[row] for row in touched]), step)
        meant += 3 * len(state.get("momentum", touched))
        assert np.array_equal(parameter.detach().numpy(), table)
    counts = sum(row.counts.updates for row in sim.report().rows)
    assert counts == meant


def test_gradients_of_two_uses_are_added_by_place():
    table = fpsim.run(nn.Embedding(5, 3, sparse=True), "fp16")
    with table:
        for rows in ([1, 1, 2], [2, 4]):
            table(torch.tensor(rows)).mul(0.3).sum().backward()
        (gradient,) = (item.grad.coalesce() for item in table.parameters())
    each = float(np.float16(0.3))
    assert gradient.indices().tolist() == [[1, 2, 4]]
    assert gradient.values().tolist() == [[2 * each] * 3, [2 * each] * 3, [each] * 3]  # exact in fp16


def test_what_has_no_rule_is_refused_or_is_torchs_own_error():
    some = torch.eye(3).to_sparse()
    computations = (lambda: some.exp(), lambda: torch.ones(3, 3).mul_(some), lambda: some + some.double())
    with fpsim.emulate("fp16"):
        for compute in computations:
            with pytest.raises(UnsupportedOp, match="sparse"):
                compute()
        with pytest.raises(RuntimeError, match="not supported"):
            some + torch.ones(3, 3)


@pytest.mark.parametrize("mode", ["sum", "mean", "weighted"])
def test_gradients_of_bags_store_what_each_use_adds(mode):
    table = fpsim.run(nn.EmbeddingBag(5, 3, mode=mode.replace("weighted", "sum"), sparse=True), "fp16")
    slope, weights = slopes((0, 1)), half([0.3, 0.7, 1.1])
    with table:
        bags = table(torch.tensor([4, 2, 1]), torch.tensor([0, 2]), torch.from_numpy(weights) if mode == "weighted" else None)
        (bags * torch.from_numpy(slope)).sum().backward()
        gradient = next(table.parameters()).grad.coalesce()
    of_uses = slope[[0, 0, 1]]
    found = {"sum": of_uses, "mean": of_uses / np.float32([[2], [2], [1]]), "weighted": of_uses * weights[:, None]}[mode]
    assert gradient.indices().tolist() == [[1, 2, 4]]
    assert np.array_equal(gradient.values().numpy(), half(found)[::-1])
