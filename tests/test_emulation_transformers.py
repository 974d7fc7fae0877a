"""Small random models of the transformers package: one training step each, no operation without a rule."""

import numpy as np
import pytest
import torch

import fpsim

transformers = pytest.importorskip("transformers", reason="needs the package transformers")

SIZE = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def bert():
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, **SIZE)
    return transformers.BertForSequenceClassification(config)


def vit():
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, **SIZE)
    return transformers.ViTForImageClassification(config)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=20, max_position_embeddings=8, num_key_value_heads=1, bos_token_id=0, eos_token_id=1, **SIZE
    )
    return transformers.LlamaForCausalLM(config)


def inputs_of(name):
    tokens = torch.randint(2, 20, (3, 6))
    if name == "vit":
        return {"pixel_values": torch.randn(3, 1, 8, 8), "labels": torch.tensor([0, 1, 1])}
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0  # padded on the left
    return {"input_ids": tokens, "attention_mask": mask, "labels": torch.tensor([0, 1, 1]) if name == "bert" else tokens}


MODELS = {"gpt2": gpt2, "bert": bert, "vit": vit, "llama": llama}


def step(sim, name, cast=None):
    torch.manual_seed(1)
    inputs = inputs_of(name)
    if cast is not None:
        inputs = {key: value.to(cast) if value.is_floating_point() else value for key, value in inputs.items()}
    optimizer = torch.optim.AdamW(sim.parameters(), lr=1e-2, eps=1e-4)
    with sim:
        outputs = sim(**inputs)
        outputs.loss.backward()
        optimizer.step()
    return outputs


@pytest.mark.parametrize(("fmt", "accumulate"), [("fp16", "fp16"), ("bf16", "fp32")])
@pytest.mark.parametrize("name", MODELS)
def test_a_training_step(name, fmt, accumulate):
    torch.manual_seed(0)
    sim = fpsim.run(MODELS[name](), fmt, accumulate)
    outputs = step(sim, name)
    assert torch.isfinite(outputs.loss)
    assert torch.isfinite(outputs.logits).all()
    for tensor in (outputs.loss, outputs.logits, *sim.parameters(), *(p.grad for p in sim.parameters() if p.grad is not None)):
        values = tensor.detach().numpy()
        assert np.array_equal(values, fpsim.round(values, fmt), equal_nan=True)
        # Llama's norm computes in float32 on purpose; a machine without wider floats overflows in its gradient.
        assert np.isfinite(values).all() or (name, fmt) == ("llama", "fp16")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_in_half(name, dtype):
    torch.manual_seed(0)
    sim = fpsim.run(MODELS[name]().to(dtype), "native")
    outputs = step(sim, name, dtype)
    assert outputs.logits.dtype is dtype
    for tensor in (outputs.loss, outputs.logits, *sim.parameters()):
        assert torch.isfinite(tensor).all()
