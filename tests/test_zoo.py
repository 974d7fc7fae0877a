"""Models that others wrote: what is committed about them, how they are tried, and a few of each family, tried here."""

import os
import time

import pytest
import torch

import fpsim
from experiments.store import Store
from experiments.zoo import command, page
from experiments.zoo.entries import Entry, entry_of
from experiments.zoo.trial import NARROW, Stepped, misfits, try_entry
from experiments.zoo.workers import findings

SMALL = """
    transformers/albert transformers/bart transformers/bert transformers/clip transformers/deberta transformers/distilbert
    transformers/gemma2 transformers/gpt2 transformers/gpt_neox transformers/llama transformers/mixtral transformers/opt
    transformers/phi transformers/qwen2_moe transformers/roberta transformers/t5 transformers/vit
    torchvision/resnet18 torchvision/squeezenet1_1 torchvision/mobilenet_v3_small timm/resnet18 timm/vit_tiny_patch16_224
    diffusers/AutoencoderTiny diffusers/DiTTransformer2DModel diffusers/SD3Transformer2DModel diffusers/FluxTransformer2DModel
    graphs/GCNConv graphs/GATConv graphs/TransformerConv graphs/SchNet graphs/NNConv processes/RBFKernel processes/ExactGP
    equations/rk4 equations/dopri5 spikes/Leaky spikes/RSynaptic geometry/TensorProduct geometry/SphericalHarmonics
    geometry/BatchNorm
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("key", SMALL.split())
def test_a_step_of_it_is_right(key):
    try:
        entry_of(key)
    except ImportError as error:
        pytest.skip(str(error))
    found = try_entry(key, ("fp16", "bf16"))
    assert found["identity"] is not False and not isinstance(found["identity"], str)
    assert page.is_right(found, "fp16") and page.is_right(found, "bf16")


def test_the_page_is_what_the_results_come_to():
    records = Store(command.RESULTS).records().values()
    assert page.compose(list(records)) == command.PAGE.read_text()
    assert sum("excluded" not in record.result for record in records) >= 250


ENTRY = Entry("tests", "linear", lambda: torch.nn.Linear(3, 3), lambda model: ((torch.randn(2, 3),), {}))


def test_what_is_no_value_of_the_format_is_found():
    plain, narrow = Stepped(ENTRY), Stepped(ENTRY, lambda model: fpsim.run(model, fmt="fp16", accumulate="fp16"))
    assert misfits(plain, "fp16") > 10 and misfits(narrow, "fp16") == 0 and misfits(narrow, "e5m2") > 10
    assert plain.digest() == Stepped(ENTRY).digest() != narrow.digest()


def _end_itself(key):
    if key == "dies":
        os._exit(3)
    if key == "sleeps":
        time.sleep(60)
    return {"found": key}


def test_models_that_die_or_take_too_long_are_findings_and_the_others_are_tried():
    found = dict(findings(_end_itself, ["a", "dies", "b", "sleeps", "c"], jobs=1, limit=3))
    assert found["dies"] == {"stopped": "the process died"} and found["sleeps"] == {"stopped": "no end within 3 s"}
    assert [found[key] for key in "abc"] == [{"found": key} for key in "abc"]


def test_a_model_that_raises_is_reported_with_what_it_raises():
    found = {"plain": 1.0, "parameters": 3, "identity": True, **{name: {"raised": "UnsupportedOp: aten.x"} for name in NARROW}}
    assert not page.is_right(found, "fp16") and page.in_words(found) == "fp16: UnsupportedOp: aten.x"
