"""A training is a function of its configuration: its bits are those that are committed, wherever it was stopped."""

import numpy as np
import pytest
import torch

from experiments.claim import get_claim, names
from experiments.data.topics import UnknownText
from experiments.metrics import correct
from experiments.models import MODELS, build, structure
from experiments.models.dropout import Dropout
from experiments.models.initial import perturb
from experiments.training import Trainer, Training, train
from tests.frequency import often

#: Claims whose smallest form takes many seconds, most of them for kernels of its own.
LONG = ("fp8", "order", "gpt")
SMALL = {"data": "digits", "model": "mlp-bn", "seed": 0, "epochs": 2, "limit": 64}


@pytest.mark.parametrize("extra", [{"update": "stochastic", "schedule": "linear"}, {"update": "kahan"}])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(extra, tmp_path):
    asked = Training.of({**SMALL, "fmt": "bf16", "momentum": 0.5, **extra})
    whole, first = Trainer(asked), Trainer(asked)
    whole.run_epoch(), whole.run_epoch()
    first.run_epoch()
    torch.save(first.state(), tmp_path / "state")
    second = Trainer(asked)
    second.resume(torch.load(tmp_path / "state"))
    second.run_epoch()
    assert second.result()["digest"] == whole.result()["digest"] != first.result()["digest"]
    assert second.losses == whole.losses


def test_a_training_with_checkpoints_goes_on_from_the_last_one(tmp_path, monkeypatch):
    asked = {**SMALL, "fmt": "fp16", "arm": "any"}
    whole = train(asked)
    monkeypatch.setenv("FPSIM_CHECKPOINTS", str(tmp_path))
    epochs, run_epoch = [], Trainer.run_epoch

    def interrupted(trainer):
        epochs.append(trainer.epoch)
        if len(epochs) == 2:
            raise KeyboardInterrupt
        run_epoch(trainer)

    monkeypatch.setattr(Trainer, "run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(asked)
    again = train(asked)
    assert epochs == [0, 1, 1] and again["digest"] == whole["digest"] and again["correct"] == whole["correct"]


def test_dropout_repeats_and_goes_on():
    first, second = Dropout(0.25), Dropout(0.25)
    x = torch.ones(1000)
    masks = [first(x) for _ in range(3)]
    second.load_state_dict({"calls": torch.tensor(2)})
    assert torch.equal(second(x), masks[2]) and not torch.equal(masks[0], masks[1])
    assert set(masks[0].tolist()) == {0.0, float(torch.tensor(1 / 0.75))} and 0.7 < (masks[0] > 0).double().mean() < 0.8
    assert torch.equal(first.eval()(x), x)


#: Millions of parameters, table 5 of arXiv 2305.10947; for AlexNet its released code has ten times the table's 2.09.
TABLE_5 = {
    "alexnet": 20.97, "resnet32": 0.47, "resnet56": 0.86, "densenet121": 7.04, "densenet169": 12.65, "xception": 22.96,
    "mobilenetv2": 2.27, "vit8": 2.02, "vit12": 2.55,
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE_5)
def test_published_models_have_their_numbers_of_parameters(name):
    with torch.device("meta"):
        model = structure(name)
    count = sum(value.numel() for key, value in model.state_dict().items() if not key.endswith(("tracked", "calls")))
    assert abs(count / 1e6 - TABLE_5[name]) < 0.005 + 0.002 * TABLE_5[name]
    assert model.to_empty(device="cpu").eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_arms_differ_and_repeat():
    arms = ({}, {"perturb": True}, {"fmt": "fp16"}, {"fmt": "fp16", "accumulate": "fp16"}, {"fmt": "fp16", "norms": "fp32"})
    digests = [train({**SMALL, **arm, "arm": "any"})["digest"] for arm in (*arms, arms[2])]
    assert len(set(digests)) == 5 and digests[5] == digests[2]


def test_a_scaled_loss_is_undone_by_the_learning_rate():
    """Powers of two that nothing overflows or underflows under change no bit."""
    plain, scaled = (train({**SMALL, "fmt": "bf16", "loss_scale": scale}) for scale in (1.0, 128.0))
    assert plain["digest"] == scaled["digest"]


@pytest.mark.parametrize("name", MODELS)
def test_models_are_drawn_the_same_everywhere(name):
    first, second = (dict(build(name, 3).named_parameters()) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    weights = [value for value in first.values() if value.dim() > 1]
    assert all(0 < float(weight.detach().abs().max()) <= 1 / np.sqrt(weight[0].numel()) for weight in weights)


def test_a_perturbed_model_is_one_ulp_away():
    model, other = build("mlp-bn", 0), build("mlp-bn", 0)
    perturb(other, 0)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        a, b = a.detach().numpy(), b.detach().numpy()
        assert ((b == np.nextafter(a, np.float32(np.inf))) | (b == np.nextafter(a, np.float32(-np.inf)))).all()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"learning_rate": 1}, "learning_rate"), ({"optimizer": "lion"}, "sgd, adam, adamw"), ({"update": "odd"}, "kahan"),
     ({"optimizer": "adam", "loss_scale": 8.0}, "SGD")],
)  # fmt: skip
def test_what_a_training_does_not_know_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        Training.of({**SMALL, **wrong})


def test_a_row_with_nan_is_not_correct():
    assert correct(np.array([[np.nan, 1.0], [0.0, 1.0], [1.0, 1.0]]), np.array([0, 1, 0])) == 2


@pytest.mark.parametrize("name", often(names(), lambda name: name not in LONG))
def test_the_smallest_form_of_every_claim_has_the_committed_results(name):
    """The same bits on every machine: digests of weights, counts, figures."""
    claim = get_claim(name)
    kept = claim.store("smallest").records()
    runs = claim.runs("smallest")
    assert set(kept) == {run.key for run in runs}, "python -m experiments run --smallest"
    for run in runs if claim.source is claim else ():  # those of another claim are measured with that one
        try:
            result = claim.measure(run).result
        except UnknownText as error:
            pytest.skip(str(error))
        assert result == kept[run.key].result, run.configuration
    claim.judge(list(kept.values()))
