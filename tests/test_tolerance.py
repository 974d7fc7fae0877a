"""Classification tolerance: the lemma with strict >, its corollary, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import fpsim
from fpsim.emulation.certification import classification_tolerance, tolerance


class Fixed(nn.Module):
    """Gives the same rows whatever comes in."""

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.tensor(rows, dtype=torch.float32)

    def forward(self, x):
        return self.rows[: len(x)]


def compare(a, b, targets=None):
    x = torch.zeros(len(a), 1)
    return tolerance(Fixed(a), Fixed(b), [x if targets is None else (x, torch.tensor(targets))])


def test_equality_is_not_enough():
    """M32 = (0.375, 0.625) and M16 = (0.5, 0.5): Gamma = 2 delta, and a first-index argmax answers 1 and 0."""
    found = compare([[0.375, 0.625]], [[0.5, 0.5]])
    assert found.gamma.item() == 2 * found.delta.item() == 0.25
    assert not found.agree.item()
    assert bool(found.gamma >= 2 * found.delta)  # the lemma with >= would claim agreement
    assert not found.covered.item()


probabilities = st.lists(st.integers(0, 64), min_size=3, max_size=3).map(lambda row: [value / 64 for value in row])


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(probabilities, probabilities, st.integers(0, 2)), min_size=1, max_size=12))
def test_the_lemma_and_its_corollary(rows):
    a, b, targets = (list(column) for column in zip(*rows, strict=True))
    found = compare(a, b, targets)
    assert not (found.covered & ~found.agree).any()
    assert found.agreement >= found.covered_fraction
    assert found.accuracy_difference <= 1 - found.agreement + 1e-12 <= 1 - found.covered_fraction + 2e-12
    for row_a, row_b, delta, gamma in zip(a, b, found.delta, found.gamma, strict=True):
        assert delta == max(abs(x - y) for x, y in zip(row_a, row_b, strict=True))
        assert gamma == sorted(row_a)[-1] - sorted(row_a)[-2]


def test_what_is_not_a_number_is_not_covered():
    found = compare([[np.nan, 1.0], [0.0, 1.0]], [[0.0, 1.0], [np.nan, 1.0]])
    assert not found.covered.any()
    assert found.gamma[0].isnan() and found.delta.isnan().all()


def test_infinities_of_one_sign_are_no_difference():
    found = compare([[-np.inf, 1.0]], [[-np.inf, 1.0]])
    assert found.delta.item() == 0


def test_a_simulation_against_its_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 4))
    loader = [(torch.randn(16, 10), torch.randint(0, 4, (16,))) for _ in range(3)]
    found = tolerance(model, fpsim.run(model, "fp16"), loader)
    assert model.training  # as it was
    assert len(found.delta) == 48 and 0 < found.delta.max() < 0.01
    assert found.agreement >= found.covered_fraction > 0.5
    assert "A = " in str(found)


def test_one_class_has_no_second():
    assert torch.isinf(classification_tolerance(torch.tensor([[1.0]]))).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="no batches"):
        tolerance(Fixed([[1.0]]), Fixed([[1.0]]), [])
    with pytest.raises(ValueError, match="differ in shape"):
        compare([[0.0, 1.0]], [[0.0, 1.0, 2.0]])
    with pytest.raises(ValueError, match="targets"):
        compare([[0.0, 1.0]], [[0.0, 1.0]], [0, 1])
